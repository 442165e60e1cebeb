// Windows of neighborhood attention along one axis, inside a dilation group of `length` tokens.
// `rule`: 0 the window shifts inward at the borders, 1 it is cut off there, 2 it reaches past
// them, 3 causal.

// First key that query u sees.
fn window_start(u: i32, length: i32, kernel: i32, stride: i32, rule: i32) -> i32 {
    let first = u / stride * stride;
    if rule == 3 {
        return max(min(first + stride - 1, length - 1) - kernel + 1, 0);
    }
    // an even window has its extra key on the left
    let start = first + stride / 2 - kernel / 2;
    if rule == 0 {
        let leader = min(first + stride / 2, length - 1);
        return clamp(leader - kernel / 2, 0, length - kernel);
    }
    return select(start, max(start, 0), rule == 1);
}

// One past the last key that query u sees.
fn window_end(u: i32, length: i32, kernel: i32, stride: i32, rule: i32) -> i32 {
    let first = u / stride * stride;
    if rule == 3 {
        return u + 1;
    }
    let start = first + stride / 2 - kernel / 2;
    if rule == 0 {
        let leader = min(first + stride / 2, length - 1);
        return clamp(leader - kernel / 2, 0, length - kernel) + kernel;
    }
    return select(start + kernel, min(start + kernel, length), rule == 1);
}
