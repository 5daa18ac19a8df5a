use super::*;
use crate::checkpoint::{Bytes, Tensor, TensorType};
use proptest::prelude::*;
use tritone_kernels::float::FloatFormat;

fn head(weights: &[f32], cols: usize) -> Arc<Head> {
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let n = bytes.len();
    let data = Bytes::from(bytes).view(0..n).unwrap();
    let dims = vec![cols, weights.len() / cols];
    let tensor = Tensor::new("test".into(), "output.weight".to_owned(), TensorType::F32, dims, 0, n, data);
    Arc::new(Head::Float { tensor, format: FloatFormat::F32 })
}

fn screen_of(weights: &[f32], cols: usize, isa: Isa, pool: &mut Pool) -> Arc<Screen> {
    let (head, n_rows) = (head(weights, cols), weights.len() / cols);
    Arc::new(Screen::build(&head, (n_rows, cols), FloatKernels::new(isa), isa, pool).unwrap().unwrap())
}

fn choose(screen: &Arc<Screen>, pool: &mut Pool, states: &[f32], need: &Need) -> Vec<Option<Chosen>> {
    let mut buffers = vec![Vec::new(); pool.n_threads()];
    screen.choose(pool, &mut buffers, states, need)
}

/// For one state, which comes out alike beside others.
fn choose_one(screen: &Arc<Screen>, pool: &mut Pool, x: &[f32], need: &Need) -> Option<Chosen> {
    let [one] = &choose(screen, pool, x, need)[..] else { unreachable!("one state") };
    let zeros = vec![0.0; x.len()];
    let other: Vec<f32> = x.iter().rev().copied().collect();
    let five = choose(screen, pool, &[&zeros, x, &other, &other, x].concat(), need);
    assert!(five.len() == 5 && same(&five[1], one) && same(&five[4], one) && five[0].is_none());
    one.clone()
}

/// The same bits, NaNs among them.
fn same(a: &Option<Chosen>, b: &Option<Chosen>) -> bool {
    let bits = |chosen: &Chosen| chosen.logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    match (a, b) {
        (Some(a), Some(b)) => a.ids == b.ids && bits(a) == bits(b) && (a.low_rows, a.rows) == (b.low_rows, b.rows),
        (None, None) => true,
        _ => false,
    }
}

/// Asserts that what is chosen has all that is needed, with the bits of the whole head, on every instruction set alike.
fn check(weights: &[f32], x: &[f32], needs: &[Need]) {
    let (cols, n_rows) = (x.len(), weights.len() / x.len());
    let mut pool = Pool::new(2).unwrap();
    let mut logits = vec![0.0; n_rows];
    head(weights, cols).rows_dot(&FloatKernels::new(Isa::detect()), 0..n_rows, x, &mut logits);
    let mut order: Vec<u32> = (0..n_rows as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let screen = screen_of(weights, cols, Isa::detect(), &mut pool);
    let portable = screen_of(weights, cols, Isa::scalar(), &mut pool);
    for need in needs {
        let chosen = choose_one(&screen, &mut pool, x, need);
        let again = choose_one(&portable, &mut pool, x, need);
        let Some(chosen) = chosen else {
            assert!(again.is_none());
            continue;
        };
        let again = again.expect("the same rows");
        assert_eq!((&again.ids, again.low_rows, again.rows), (&chosen.ids, chosen.low_rows, chosen.rows));
        assert!(chosen.ids.is_sorted() && chosen.ids.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(chosen.ids.len() == chosen.rows && chosen.rows <= n_rows && chosen.low_rows <= n_rows);
        for (id, logit) in chosen.ids.iter().zip(&chosen.logits) {
            let whole = logits[*id as usize];
            assert!(logit.to_bits() == whole.to_bits() || (logit.is_nan() && whole.is_nan()), "{id}: {logit}, {whole}");
        }
        // What must be reported as an error is always among them.
        for (id, logit) in (0u32..).zip(&logits) {
            assert!(logit.is_finite() || chosen.ids.contains(&id), "row {id} has logit {logit}");
        }
        if logits.iter().any(|logit| !logit.is_finite()) {
            continue;
        }
        let wanted: Vec<u32> = match need {
            Need::All => unreachable!("nothing is chosen then"),
            Need::Top { count, tokens } => order.iter().take(*count).chain(tokens).copied().collect(),
            Need::Within { below } => {
                let least = logits[order[0] as usize] - below;
                order.iter().copied().filter(|id| logits[*id as usize] >= least).collect()
            }
        };
        // All equal ones that could be the last of the largest are there too.
        let last = match need {
            Need::Top { count, .. } if *count > 0 => logits[order[count - 1] as usize],
            _ => f32::INFINITY,
        };
        let wanted = wanted.into_iter().chain((0..n_rows as u32).filter(|id| logits[*id as usize] == last));
        for id in wanted {
            assert!(chosen.ids.contains(&id), "{need:?}: {id} with {} is not in {chosen:?}", logits[id as usize]);
        }
    }
}

fn needs(n_rows: usize) -> Vec<Need> {
    let top = |count, tokens: &[u32]| Need::Top { count, tokens: tokens.to_vec() };
    let mut needs = vec![top(1, &[]), top(2, &[0]), top(40, &[3, 1, 3]), top(n_rows - 1, &[]), top(0, &[2])];
    needs.extend([0.0, 0.5, 3.0, 100.0].map(|below| Need::Within { below }));
    needs
}

/// A row of one of many kinds.
fn row(kind: u8, cols: usize, first: &[f32], noise: &[f32]) -> Vec<f32> {
    let scaled = |factor: f32| noise.iter().map(|x| x * factor).collect::<Vec<f32>>();
    let with = |at: usize, value: f32| {
        let mut row = scaled(1.0);
        row[at % cols] = value;
        row
    };
    match kind {
        0 => vec![0.0; cols],
        1 => first.to_vec(),
        2 => scaled(1e18),
        3 => scaled(1e-36),
        4 => with(1, 1e4),
        5 => with(2, -3e38),
        6 => with(3, f32::INFINITY),
        7 => with(4, f32::NAN),
        8 => first.iter().zip(noise).map(|(first, noise)| first + noise * 1e-6).collect(),
        9 => with(0, 1e-40),
        _ => scaled(1.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn nothing_that_matters_is_left_out(
        kinds in prop::collection::vec(0u8..40, 45..700),
        cols in 1usize..300,
        spike in prop::option::of(0usize..300),
        size in prop::sample::select(vec![1e-30f32, 1e-15, 1e-3, 1.0, 50.0, 1e20]),
        wild: bool,
        seed: u32,
    ) {
        let mut state = seed | 1;
        // Sums of uniform numbers, so that most are small.
        let mut noise = || {
            let mut sum = 0.0f32;
            for _ in 0..4 {
                state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                sum += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            }
            sum
        };
        let first: Vec<f32> = (0..cols).map(|_| noise()).collect();
        let mut weights = Vec::new();
        for kind in &kinds {
            let noise: Vec<f32> = (0..cols).map(|_| noise()).collect();
            // Without rows that are not finite or huge, so that there is a choice to be made.
            let kind = if !wild && [2, 5, 6, 7].contains(kind) { 10 } else { *kind };
            weights.extend(row(kind, cols, &first, &noise));
        }
        let mut x: Vec<f32> = (0..cols).map(|_| noise() * size).collect();
        if let Some(at) = spike {
            x[at % cols] = size * 300.0;
        }
        check(&weights, &x, &needs(kinds.len()));
    }
}

fn value(i: usize) -> f32 {
    let mixed = (i as u32 ^ 0x5bd1_e995).wrapping_mul(2_654_435_761);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(2_246_822_519);
    ((mixed ^ mixed >> 13) >> 8) as f32 / (1 << 24) as f32 - 0.5
}

/// Without rows that stand out or are huge, few are left for a greedy choice, over all chunks.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn little_is_left() {
    let (n_rows, cols) = (5000, 384);
    let weights: Vec<f32> = (0..n_rows * cols).map(value).collect();
    let x: Vec<f32> = (0..cols).map(|i| value(i * 7919 + 5)).collect();
    let mut pool = Pool::new(2).unwrap();
    let screen = screen_of(&weights, cols, Isa::detect(), &mut pool);
    assert!(screen.chunks.len() > 2 && screen.loose.is_empty());
    let chosen = choose_one(&screen, &mut pool, &x, &Need::top(1)).unwrap();
    assert!(chosen.low_rows < n_rows / 5 && chosen.rows < 40, "{} and {} rows", chosen.low_rows, chosen.rows);
    // Two lines for the scales of six blocks, which would fill one and a half.
    assert_eq!(screen.high_bytes() - n_rows * Notes::ROW_BYTES, n_rows.div_ceil(TILE) * TILE * (192 + 8));
    assert_eq!(screen.low_bytes(), n_rows * (192 + 6));
    check(&weights, &x, &needs(n_rows));
}

#[test]
fn what_cannot_be_screened_is_not() {
    let mut pool = Pool::new(1).unwrap();
    let screen = screen_of(&[1.0, 2.0, 3.0, 4.0], 2, Isa::scalar(), &mut pool);
    let mut ids = |x: [f32; 2], need: Need| choose_one(&screen, &mut pool, &x, &need).map(|chosen| chosen.ids);
    assert_eq!(ids([1.0, 1.0], Need::All), None);
    assert_eq!(ids([1.0, 1.0], Need::top(2)), None);
    assert_eq!(ids([1.0, f32::NAN], Need::top(1)), None);
    assert_eq!(ids([1.0, f32::INFINITY], Need::top(1)), None);
    assert_eq!(ids([0.0, 0.0], Need::top(1)), None);
    // With two rows both have to be computed to know what is to be reached.
    assert_eq!(ids([1.0, 1.0], Need::top(1)), Some(vec![0, 1]));
    assert_eq!(ids([1.0, 1.0], Need::Top { count: 0, tokens: vec![1, 7] }), Some(vec![1]));
}

#[test]
fn the_best_estimates_are_found() {
    for n_rows in [1, 255, 256, 1000, 4000] {
        for n_states in [1, 3] {
            let values = |state: usize| (0..n_rows).map(|i| value(i * 31 + state * 7).abs()).collect::<Vec<f32>>();
            let n_items = n_rows.div_ceil(ITEM_ROWS);
            let items = (0..n_items).map(|item| item * ITEM_ROWS..((item + 1) * ITEM_ROWS).min(n_rows));
            // Two threads, each with every other item.
            let mut outputs = [0, 1].map(|_| Output { ranges: Vec::new(), values: Vec::new() });
            for (item, rows) in items.enumerate() {
                let output = &mut outputs[item % 2];
                for state in 0..n_states {
                    output.values.extend(&values(state)[rows.clone()]);
                }
                for state in 0..n_states {
                    output.values.push(values(state)[rows.clone()].iter().copied().fold(0.0, f32::max));
                }
                output.ranges.push((item..item + 1, output.values.len()));
            }
            let estimates = Estimates::new(outputs.into(), n_items);
            for state in 0..n_states {
                let values = values(state);
                let mut order: Vec<u32> = (0..n_rows as u32).collect();
                order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
                for count in [1, 3, 30, n_rows] {
                    let mut best = estimates.best(state, n_states, count.min(n_rows));
                    best.sort_unstable();
                    let mut expected = order[..count.min(n_rows)].to_vec();
                    expected.sort_unstable();
                    assert_eq!(best, expected, "{count} of {n_rows}");
                }
            }
        }
    }
}
