//! Attention over a cache of halves and of singles against plain loops, and against exact attention in `f64`.

use super::*;

/// What a test must know of a stored number.
trait Case: CacheElement {
    const NAN: Self;
    fn rounded(x: &[f32]) -> Vec<f32>;
}

impl Case for u16 {
    const NAN: u16 = 0x7fff;
    fn rounded(x: &[f32]) -> Vec<f32> {
        halves(x).into_iter().map(from_half).collect()
    }
}

impl Case for f32 {
    const NAN: f32 = f32::NAN;
    fn rounded(x: &[f32]) -> Vec<f32> {
        x.to_vec()
    }
}

/// A cache of one key/value head, filled through `store_key` and `store_value`; whatever is past
/// the last key is NaN and must not matter.
struct Cache<E> {
    head_dim: usize,
    keys: Vec<E>,
    values: Vec<E>,
    plain_keys: Vec<Vec<f32>>,
    plain_values: Vec<Vec<f32>>,
}

impl<E: Case> Cache<E> {
    fn new(kernels: &FloatKernels, n_keys: usize, head_dim: usize, values: &mut dyn FnMut(usize) -> Vec<f32>) -> Self {
        let block = KEY_LANES * head_dim;
        let mut cache = Self {
            head_dim,
            keys: vec![E::NAN; n_keys.div_ceil(KEY_LANES) * block],
            values: vec![E::NAN; (n_keys + 1) * head_dim],
            plain_keys: Vec::new(),
            plain_values: Vec::new(),
        };
        for j in 0..n_keys {
            let (key, value) = (values(head_dim), values(head_dim));
            let keys = &mut cache.keys[j / KEY_LANES * block..][..block];
            kernels.store_key(&key, j % KEY_LANES, keys);
            kernels.store_value(&value, &mut cache.values[j * head_dim..][..head_dim]);
            cache.plain_keys.push(E::rounded(&key));
            cache.plain_values.push(E::rounded(&value));
        }
        cache
    }

    fn block(&self, first: usize, n_keys: usize) -> CachedBlock<'_, E> {
        let (keys, values) = (&self.keys[first * self.head_dim..], &self.values[first * self.head_dim..]);
        CachedBlock { keys, values, first_key: 0, n_keys, n_positions: 1, next: [keys, values] }
    }

    /// Over the keys from `first` on.
    fn plain(&self, query: &[f32], scale: f32, first: usize) -> (Vec<f32>, Partial) {
        let dot = |key: &Vec<f32>| key.iter().zip(query).fold(0.0, |s: f32, (k, q)| q.mul_add(*k, s));
        let scores: Vec<f32> = self.plain_keys[first..].iter().map(|key| dot(key) * scale).collect();
        let max = plain_max(&scores);
        let p: Vec<f32> = scores.iter().map(|s| plain_exp(s - max)).collect();
        let sum = plain_sum(p.iter().copied());
        let mut out = vec![0.0; query.len()];
        for (p, value) in p.iter().zip(&self.plain_values[first..]) {
            for (out, v) in out.iter_mut().zip(value) {
                *out = p.mul_add(*v, *out);
            }
        }
        (out, Partial { max, sum })
    }
}

#[test]
fn attention_keeps_the_order_for_any_group_of_queries() {
    keeps_the_order::<u16>();
    keeps_the_order::<f32>();
}

fn keeps_the_order<E: Case>() {
    for kernels in instances() {
        for (i, head_dim) in [1, 2, 15, 16, 17, 31, 32, 48, 50, 64, 80, 128].iter().enumerate() {
            for n_keys in [1, 2, 31, 32, 33, 63, 100, 255, 256] {
                let n_queries = 1 + (i + n_keys) % 7 + if n_keys % 2 == 0 { 16 } else { 0 };
                let mut random = Random(77 + (head_dim * 1000 + n_keys) as u64);
                // Every fourth case is hostile: few values, as one NaN spreads far.
                let round = u64::from(n_keys % 4 == 3);
                let mut values = |n| random.values(n, round);
                let cache = Cache::<E>::new(&kernels, n_keys, *head_dim, &mut values);
                let queries = values(n_queries * head_dim);
                let mut out = vec![9.0; queries.len()];
                let mut partials = vec![Partial::default(); n_queries];
                let block = cache.block(0, n_keys);
                kernels.attention_block(&queries, 0.125, block, &mut out, &mut partials);
                for (q, query) in queries.chunks(*head_dim).enumerate() {
                    let what = std::format!("{} dim={head_dim} keys={n_keys} query {q} of {n_queries}", kernels.name());
                    let (expected, partial) = cache.plain(query, 0.125, 0);
                    assert_same(&out[q * head_dim..][..*head_dim], &expected, &what);
                    assert_same(&[partials[q].sum], &[partial.sum], &what);
                    assert_eq!(partials[q].max, partial.max, "{what}");
                }
            }
        }
    }
}

/// Keys and values out of the window are NaN here, so that one touch would show.
#[test]
fn a_window_hides_what_is_before_it() {
    hides::<u16>();
    hides::<f32>();
}

fn hides<E: Case>() {
    for kernels in instances() {
        for head_dim in [1, 16, 33, 64] {
            for (first, n_keys) in [(0, 1), (1, 2), (31, 32), (32, 33), (5, 100), (64, 256), (255, 256), (97, 161)] {
                let n_queries = 1 + (first + head_dim) % 7;
                let mut random = Random(99 + (head_dim * 1000 + n_keys) as u64);
                let mut n_made = 0;
                // A key, a value, a key, a value, and so on.
                let cache = Cache::<E>::new(&kernels, n_keys, head_dim, &mut |n| {
                    n_made += 1;
                    if n_made <= 2 * first { vec![f32::NAN; n] } else { random.tame(n) }
                });
                let queries = Random(7).tame(n_queries * head_dim);
                let mut out = vec![9.0; queries.len()];
                let mut partials = vec![Partial::default(); n_queries];
                let block = CachedBlock { first_key: first, ..cache.block(0, n_keys) };
                kernels.attention_block(&queries, 0.125, block, &mut out, &mut partials);
                for (q, query) in queries.chunks(head_dim).enumerate() {
                    let what = std::format!("{} dim={head_dim} keys {first}..{n_keys} query {q}", kernels.name());
                    let (expected, partial) = cache.plain(query, 0.125, first);
                    assert!(expected.iter().all(|x| x.is_finite()), "{what}");
                    assert_same(&out[q * head_dim..][..head_dim], &expected, &what);
                    assert_same(&[partials[q].max, partials[q].sum], &[partial.max, partial.sum], &what);
                }
            }
        }
    }
}

/// Several positions together have the bits of each alone, also beside keys and values that are NaN.
#[test]
fn positions_do_not_see_each_others_keys() {
    positions::<u16>();
    positions::<f32>();
}

fn positions<E: Case>() {
    for kernels in instances() {
        for (i, head_dim) in [1, 16, 33, 64, 128].into_iter().enumerate() {
            for (first, n_keys) in [(0, 1), (0, 30), (5, 32), (0, 63), (40, 100), (3, 240)] {
                for (n_positions, each) in [(1, 16), (2, 8), (3, 5), (4, 4), (5, 1), (16, 1), (16, 3)] {
                    let mut random = Random(31 + (head_dim * 1000 + n_keys * 10 + i) as u64);
                    let n_all = n_keys + n_positions - 1;
                    let mut n_made = 0;
                    // Those of the last position are NaN: keys and values come in turns.
                    let cache = Cache::<E>::new(&kernels, n_all, head_dim, &mut |n| {
                        n_made += 1;
                        if n_positions > 1 && n_made > 2 * (n_all - 1) {
                            vec![f32::NAN; n]
                        } else {
                            random.values(n, 0)
                        }
                    });
                    let queries = Random(8).tame(n_positions * each * head_dim);
                    let mut out = vec![9.0; queries.len()];
                    let mut partials = vec![Partial::default(); n_positions * each];
                    let block = CachedBlock { first_key: first, n_positions, ..cache.block(0, n_keys) };
                    kernels.attention_block(&queries, 0.125, block, &mut out, &mut partials);
                    let by_position = queries.chunks(each * head_dim).zip(out.chunks(each * head_dim));
                    for (p, ((queries, out), partials)) in by_position.zip(partials.chunks(each)).enumerate() {
                        let what = std::format!("{} dim={head_dim} keys {first}..{n_keys} + {p}", kernels.name());
                        let mut alone = vec![9.0; queries.len()];
                        let mut partial = vec![Partial::default(); each];
                        let block = CachedBlock { first_key: first, ..cache.block(0, n_keys + p) };
                        kernels.attention_block(queries, 0.125, block, &mut alone, &mut partial);
                        assert_same(out, &alone, &what);
                        for (a, b) in partials.iter().zip(partial) {
                            assert_same(&[a.max, a.sum], &[b.max, b.sum], &what);
                        }
                        assert_eq!(out.iter().any(|x| x.is_nan()), n_positions > 1 && p + 1 == n_positions, "{what}");
                    }
                }
            }
        }
    }
}

/// A block of 256 keys has none for a second position.
#[test]
#[should_panic(expected = "keys for the last")]
fn a_position_without_its_key_is_refused() {
    let kernels = FloatKernels::new(crate::isa::Isa::scalar());
    let cache = Cache::<u16>::new(&kernels, ATTENTION_BLOCK, 1, &mut |n| vec![0.0; n]);
    let block = CachedBlock { n_positions: 2, ..cache.block(0, ATTENTION_BLOCK) };
    kernels.attention_block(&[0.0; 2], 1.0, block, &mut [0.0; 2], &mut [Partial::default(); 2]);
}

#[test]
fn joined_blocks_are_close_to_exact_attention() {
    joined_blocks_are_close::<u16>();
    joined_blocks_are_close::<f32>();
}

fn joined_blocks_are_close<E: Case>() {
    const DIM: usize = 20;
    const N_QUERIES: usize = 3;
    for kernels in instances() {
        let mut random = Random(5);
        let cache = Cache::<E>::new(&kernels, 700, DIM, &mut |n| random.tame(n));
        let queries = random.tame(N_QUERIES * DIM);
        let mut outs = Vec::new();
        let mut partials = Vec::new();
        for first in (0..700).step_by(ATTENTION_BLOCK) {
            let block = cache.block(first, ATTENTION_BLOCK.min(700 - first));
            let mut out = [0.0; N_QUERIES * DIM];
            let mut partial = [Partial::default(); N_QUERIES];
            kernels.attention_block(&queries, 0.2, block, &mut out, &mut partial);
            outs.extend_from_slice(&out);
            partials.extend_from_slice(&partial);
        }
        let mut joined = [0.0; N_QUERIES * DIM];
        kernels.attention_join(&partials, &outs, N_QUERIES, &mut joined);
        for (q, query) in queries.chunks(DIM).enumerate() {
            let dot =
                |key: &Vec<f32>| -> f64 { key.iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum() };
            let p: Vec<f64> = cache.plain_keys.iter().map(|k| libm::exp(dot(k) * 0.2)).collect();
            let total: f64 = p.iter().sum();
            for d in 0..DIM {
                let values = cache.plain_values.iter().map(|v| f64::from(v[d]));
                let exact: f64 = p.iter().zip(values).map(|(p, v)| p * v).sum::<f64>() / total;
                let error = (f64::from(joined[q * DIM + d]) - exact).abs();
                assert!(error < 5e-6, "{} query {q} dimension {d}: {error}", kernels.name());
            }
            // Query by query, the bits are the same.
            let one: Vec<Partial> = partials.iter().skip(q).step_by(N_QUERIES).copied().collect();
            let rows: Vec<f32> = outs.chunks(DIM).skip(q).step_by(N_QUERIES).flatten().copied().collect();
            let mut out = [0.0; DIM];
            kernels.attention_join(&one, &rows, 1, &mut out);
            assert_same(&joined[q * DIM..][..DIM], &out, kernels.name());
        }
    }
}
