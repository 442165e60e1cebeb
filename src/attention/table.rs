//! The table that tells the kernels where sequences lie.

use super::{Attention, AttentionArgs, AttentionShape, BiasPositions, OP};
use crate::{Error, Result};

/// One sequence: its queries and its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    q_start: u32,
    q_len: u32,
    k_start: u32,
    k_len: u32,
    /// Row and column of the bias and the mask that its own begin at.
    pair: [u32; 2],
}

/// Words of a sequence's record; must match the kernels.
const RECORD: u64 = 7;

/// Pieces of work and sequences, as the kernels read them.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) words: Vec<u32>,
    /// Pieces of work: the table begins with three words for each.
    pub(super) items: u32,
    /// Place of the first sequence's record.
    pub(super) records: u32,
    /// Place of each query's number of parts.
    pub(super) counts: u32,
    /// Keys of all sequences.
    pub(super) keys: u64,
}

/// Checks the lengths, bounds and pages of a call, and lays out its work: blocks of `rows` rows, a
/// part for each `split` keys. A row is a query of one of `pack` heads.
pub(super) fn build(
    op: &Attention,
    s: &AttentionShape,
    args: &AttentionArgs<'_>,
    pages: u32,
    pack: u32,
    rows: u32,
    split: Option<u32>,
) -> Result<Table> {
    check_given(op, args)?;
    // equal sequences need no table
    if !op.ragged() {
        let keys = u64::from(s.batch) * u64::from(s.seq_k);
        return Ok(Table { words: Vec::new(), items: 0, records: 0, counts: 0, keys });
    }
    let sequences = sequences(op, s, args)?;
    let limit = |what, need: usize| Error::Limit {
        op: OP,
        what,
        need: need as u64,
        limit: u32::MAX.into(),
    };
    let mut words = Vec::new();
    for (batch, sequence) in (0..).zip(&sequences) {
        let blocks = (u64::from(sequence.q_len) * u64::from(pack)).div_ceil(u64::from(rows));
        let blocks = u32::try_from(blocks).map_err(|_| limit("blocks of rows", usize::MAX))?;
        for block in 0..blocks {
            for part in 0..parts(sequence, split) {
                words.extend([batch, block, part]);
            }
        }
    }
    let items = u32::try_from(words.len() / 3).map_err(|_| limit("pieces of work", words.len()))?;
    let place = |words: &[u32]| {
        u32::try_from(words.len()).map_err(|_| limit("words of the table", words.len()))
    };
    let records = place(&words)?;
    let width = op.page_size.map_or(0, |page| s.seq_k.div_ceil(page));
    let first_page = u64::from(records) + RECORD * sequences.len() as u64;
    for (batch, sequence) in (0u64..).zip(&sequences) {
        let at = first_page + batch * u64::from(width);
        let at = u32::try_from(at).map_err(|_| limit("words of the table", usize::MAX))?;
        let [pair_q, pair_k] = sequence.pair;
        let Sequence { q_start, q_len, k_start, k_len, .. } = *sequence;
        words.extend([q_start, q_len, k_start, k_len, at, pair_q, pair_k]);
    }
    if let Some(page_size) = op.page_size {
        words.extend(page_table(args, &sequences, width, page_size, pages)?);
    }
    let counts = place(&words)?;
    if split.is_some() {
        for sequence in &sequences {
            let count = parts(sequence, split);
            words.extend(std::iter::repeat_n(count, sequence.q_len as usize));
        }
    }
    place(&words)?;
    let keys = sequences.iter().map(|sequence| u64::from(sequence.k_len)).sum();
    Ok(Table { words, items, records, counts, keys })
}

/// Parts of a sequence's keys; one where there are none, which writes the empty result.
fn parts(sequence: &Sequence, split: Option<u32>) -> u32 {
    split.map_or(1, |keys| sequence.k_len.div_ceil(keys).max(1))
}

/// Every list is there if and only if the plan wants it.
fn check_given(op: &Attention, args: &AttentionArgs<'_>) -> Result<()> {
    let given = |what, given: bool, wanted: bool| match (given, wanted) {
        (true, false) => Err(Error::argument(OP, what, "given, but the plan was made without")),
        (false, true) => Err(Error::argument(OP, what, "the plan needs it, none given")),
        _ => Ok(()),
    };
    let paged = op.page_size.is_some();
    given("cu_seqlens_q", args.cu_seqlens_q.is_some(), op.packed)?;
    given("cu_seqlens_k", args.cu_seqlens_k.is_some(), op.packed && !paged)?;
    given("key_lengths", args.key_lengths.is_some(), op.key_lengths)?;
    given("page_table", args.page_table.is_some(), paged)
}

fn sequences(
    op: &Attention,
    s: &AttentionShape,
    args: &AttentionArgs<'_>,
) -> Result<Vec<Sequence>> {
    let queries: Vec<(u32, u32)> = match args.cu_seqlens_q {
        Some(bounds) => ranges("cu_seqlens_q", bounds, "seq_q", s.seq_q)?,
        // a list of lengths of another length is refused below
        None => vec![(0, s.seq_q); args.key_lengths.map_or(0, <[u32]>::len).min(s.batch as usize)],
    };
    let keys: Vec<(u32, u32)> = match (args.cu_seqlens_k, args.key_lengths) {
        (Some(bounds), _) => ranges("cu_seqlens_k", bounds, "seq_k", s.seq_k)?,
        (None, Some(lengths)) => {
            for (i, &length) in lengths.iter().enumerate() {
                if length > s.seq_k {
                    return Err(Error::value(
                        OP,
                        "key_lengths",
                        format!("at most seq_k = {}", s.seq_k),
                        format!("{length} for sequence {i}"),
                    ));
                }
            }
            lengths.iter().map(|&length| (0, length)).collect()
        }
        (None, None) => vec![(0, s.seq_k); queries.len()],
    };
    let batch = if args.cu_seqlens_q.is_some() { queries.len() } else { s.batch as usize };
    if keys.len() != batch {
        let what = if args.cu_seqlens_k.is_some() { "cu_seqlens_k" } else { "key_lengths" };
        return Err(Error::shape(
            OP,
            what,
            format!("{batch} sequences, as the queries have"),
            keys.len(),
        ));
    }
    // keys of the sequences before: the place of a first key in the pack, also where keys lie in pages
    let mut before = 0u32;
    let join = |(&(q_start, q_len), &(k_start, k_len)): (&(u32, u32), &(u32, u32))| {
        let pair = match op.bias_positions {
            BiasPositions::Sequence => [0, 0],
            BiasPositions::Pack => [q_start, before],
        };
        // no bias has more columns than a u32 counts, see `bias_shape`
        before = before.saturating_add(k_len);
        Sequence { q_start, q_len, k_start, k_len, pair }
    };
    Ok(queries.iter().zip(&keys).map(join).collect())
}

/// First row and number of rows of each sequence.
fn ranges(what: &'static str, bounds: &[u32], end_name: &str, end: u32) -> Result<Vec<(u32, u32)>> {
    if bounds.first() != Some(&0) {
        let got = bounds.first().map_or("an empty list".into(), u32::to_string);
        return Err(Error::value(OP, what, "0 as the first bound", got));
    }
    for (i, pair) in bounds.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return Err(Error::value(
                OP,
                what,
                "bounds that never fall",
                format!("{} after {} at {}", pair[1], pair[0], i + 1),
            ));
        }
    }
    if bounds.last() != Some(&end) {
        return Err(Error::value(
            OP,
            what,
            format!("{end_name} = {end} as the last bound"),
            bounds.last().copied().unwrap_or_default(),
        ));
    }
    Ok(bounds.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect())
}

/// The page table with entries that are not used set to a page that exists.
fn page_table(
    args: &AttentionArgs<'_>,
    sequences: &[Sequence],
    width: u32,
    page_size: u32,
    pages: u32,
) -> Result<Vec<u32>> {
    let table = args.page_table.unwrap_or_default();
    if table.len() as u64 != sequences.len() as u64 * u64::from(width) {
        return Err(Error::shape(
            OP,
            "page_table",
            format!("{} sequences of {width} pages", sequences.len()),
            format!("{} entries", table.len()),
        ));
    }
    let mut clean = vec![0; table.len()];
    for (i, sequence) in sequences.iter().enumerate() {
        let first = i * width as usize;
        for j in first..first + sequence.k_len.div_ceil(page_size) as usize {
            if table[j] >= pages {
                return Err(Error::value(
                    OP,
                    "page_table",
                    format!("pages below {pages}"),
                    format!("page {} for sequence {i}", table[j]),
                ));
            }
            clean[j] = table[j];
        }
    }
    Ok(clean)
}
