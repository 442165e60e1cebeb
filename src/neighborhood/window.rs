//! Which keys a query sees along one axis, as the planner, the simulator and the kernels compute
//! it. The reference states the same rule in other words and shares nothing with this file.
//!
//! All positions are inside one dilation group: token `i` of an axis belongs to group
//! `i % dilation` and is number `i / dilation` of it.

use std::ops::Range;

use super::Border;

/// One axis of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Number of tokens along the axis, all dilation groups together.
    pub(crate) tokens: u32,
    pub(crate) kernel_size: u32,
    pub(crate) stride: u32,
    pub(crate) dilation: u32,
    pub(crate) is_causal: bool,
    pub(crate) border: Border,
}

impl Axis {
    /// Tokens of the longest group, which is group 0.
    pub(crate) fn longest(&self) -> u32 {
        self.tokens.div_ceil(self.dilation)
    }

    #[cfg(test)]
    /// Tokens of group `group`: the first `tokens % dilation` groups have one more.
    pub(crate) fn group_length(&self, group: u32) -> u32 {
        self.tokens / self.dilation + u32::from(group < self.tokens % self.dilation)
    }

    /// The keys that query `u` of a group of `length` tokens sees. With [`Border::Zeros`] the
    /// window reaches outside `0..length`; with the other borders it does not.
    pub(crate) fn window(&self, u: u32, length: u32) -> Range<i64> {
        let [u, length] = [u, length].map(i64::from);
        let [kernel, stride] = [self.kernel_size, self.stride].map(i64::from);
        let first = u / stride * stride;
        if self.is_causal {
            let leader = (first + stride - 1).min(length - 1);
            return (leader - kernel + 1).max(0)..u + 1;
        }
        // an even window has its extra key on the left
        let left = kernel / 2;
        let right = kernel - 1 - left;
        match self.border {
            Border::Shift => {
                let leader = (first + stride / 2).min(length - 1);
                let past = (leader + right - (length - 1)).max(0);
                let start = (leader - left).max(0) - past;
                start..start + kernel
            }
            Border::Masked | Border::Zeros => {
                let start = first + stride / 2 - left;
                let window = start..start + kernel;
                if self.border == Border::Zeros {
                    window
                } else {
                    window.start.max(0)..window.end.min(length)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::visible;

    /// Every length to 24 with every kernel, stride, dilation, causality and border.
    #[test]
    fn equals_the_reference_exhaustively() {
        let mut windows = 0u32;
        for tokens in 1..=24 {
            for (kernel_size, dilation) in
                (1..=tokens + 3).flat_map(|k| (1..=tokens).map(move |d| (k, d)))
            {
                let (mut borders, mut causal) = (vec![Border::Masked, Border::Zeros], vec![false]);
                if kernel_size * dilation <= tokens {
                    borders.push(Border::Shift);
                    causal.push(true);
                }
                for stride in 1..=kernel_size {
                    for (&border, &is_causal) in
                        borders.iter().flat_map(|b| causal.iter().map(move |c| (b, c)))
                    {
                        let axis =
                            Axis { tokens, kernel_size, stride, dilation, is_causal, border };
                        for token in 0..tokens {
                            let group = token % dilation;
                            let got: Vec<i64> = axis
                                .window(token / dilation, axis.group_length(group))
                                .map(|key| key * i64::from(dilation) + i64::from(group))
                                .collect();
                            assert_eq!(got, visible(&axis, token), "{axis:?} token {token}");
                            windows += 1;
                        }
                    }
                }
            }
        }
        assert!(windows > 300_000, "{windows}");
    }

    /// The comparison above can fail: a window one to the right is noticed.
    #[test]
    fn a_shifted_window_is_noticed() {
        let border = Border::Shift;
        let axis =
            Axis { tokens: 9, kernel_size: 4, stride: 1, dilation: 1, is_causal: false, border };
        let wrong: Vec<i64> = (axis.window(4, 9).start + 1..axis.window(4, 9).end + 1).collect();
        assert_ne!(wrong, visible(&axis, 4));
    }

    /// What schedules rely on: both ends of a window never step back from one query to the next,
    /// and a query's own token is in its window.
    #[test]
    fn windows_are_monotonic_and_hold_their_query() {
        for tokens in 1..=24u32 {
            for kernel_size in 1..=tokens + 3 {
                for stride in 1..=kernel_size {
                    for (border, is_causal) in [
                        (Border::Shift, false),
                        (Border::Shift, true),
                        (Border::Masked, false),
                        (Border::Zeros, false),
                    ] {
                        if kernel_size > tokens && border == Border::Shift {
                            continue;
                        }
                        let axis =
                            Axis { tokens, kernel_size, stride, dilation: 1, is_causal, border };
                        for u in 0..tokens {
                            let here = axis.window(u, tokens);
                            assert!(here.contains(&i64::from(u)), "{axis:?} {u}");
                            if u > 0 {
                                let before = axis.window(u - 1, tokens);
                                assert!(
                                    before.start <= here.start && before.end <= here.end,
                                    "{axis:?} {u}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
