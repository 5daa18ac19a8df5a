//! Products on the `c2` layout: only the columns whose activation is not 0 are read.
//!
//! ```text
//! for each tile of 256 rows, each column c with q[c] != 0:
//!     sums[row] += code[row][c] * q[c]
//! sums -= sum of q
//! ```
//!
//! A skipped column would add 0 to every integer sum, so nothing is approximated. The models that
//! gate with relu^2 have few inputs of down that are not 0 after rounding (4-17% in one that was
//! trained), and so read and compute that share of the matrix only.
//!
//! The prepared vector is a list: a line with the number of listed columns and the sum of all
//! activations, then the columns as `u32`, then in the next line their activations as bytes. The list has an even
//! length, so that kernels may take two columns at a time; a last one that makes it even has
//! activation 0. What is behind the list is not read.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512vnni;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon;
pub(crate) mod scalar;

use crate::format::Geometry;
use crate::line::Line;

/// Columns that kernels take before 16-bit sums must be widened: a product is at most `3 * 128`
/// (code 3 included), and 84 of them 32,256. Even.
#[cfg(any(
    all(target_arch = "x86_64", target_feature = "sse2"),
    all(target_arch = "aarch64", target_feature = "neon")
))]
const COLUMNS_PER_WIDENING: usize = 84;

/// Lines of the columns and of the activations of a list of all columns.
const fn parts(cols: usize) -> (usize, usize) {
    let longest = cols.next_multiple_of(2);
    (Line::count_for(4 * longest), Line::count_for(longest))
}

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    let (columns, activations) = parts(geometry.cols);
    1 + columns + activations
}

/// Lines of a prepared vector that hold its list.
pub(crate) fn used_lines(vector: &[Line]) -> usize {
    let head: &[i32] = bytemuck::cast_slice(&vector[..1]);
    let n = head[0] as usize;
    1 + Line::count_for(4 * n) + Line::count_for(n)
}

pub(crate) unsafe fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    let mut list = List::new(geometry, out);
    list.push(0, codes);
    let n = list.n;
    let total = list.activations[..n].iter().map(|code| i32::from(*code)).sum();
    end(geometry, out, n, total);
}

/// A list on its way. Columns and activations have room for all columns of the matrix.
struct List<'a> {
    head: &'a mut [i32],
    columns: &'a mut [u32],
    activations: &'a mut [i8],
    /// How many are listed.
    n: usize,
}

impl<'a> List<'a> {
    fn new(geometry: &Geometry, out: &'a mut [Line]) -> List<'a> {
        let (head, lists) = out.split_at_mut(1);
        let (columns, activations) = lists.split_at_mut(parts(geometry.cols).0);
        let (head, columns) = (bytemuck::cast_slice_mut(head), bytemuck::cast_slice_mut(columns));
        List { head, columns, activations: bytemuck::cast_slice_mut(activations), n: 0 }
    }

    /// Lists those of some neighbouring columns that are not 0.
    fn push(&mut self, first: usize, codes: &[i8]) {
        // Eights of zeros are passed over. In the others each place is written and then counted when it
        // is not 0: no branch on the data.
        for (first, eight) in (first as u32..).step_by(8).zip(codes.chunks(8)) {
            if eight.iter().fold(0, |any, code| any | code) == 0 {
                continue;
            }
            for (c, &code) in (first..).zip(eight) {
                self.columns[self.n] = c;
                self.activations[self.n] = code;
                self.n += usize::from(code != 0);
            }
        }
    }
}

/// Makes a list of `n` columns even, moves its activations behind them, and notes the length and the sum of all activations.
fn end(geometry: &Geometry, out: &mut [Line], n: usize, total: i32) {
    let even = n.next_multiple_of(2);
    let list = List::new(geometry, out);
    if even > n {
        (list.columns[n], list.activations[n]) = (0, 0);
    }
    // A row has at most `format::MAX_COLS` columns.
    (list.head[0], list.head[1]) = (even as i32, total);
    let activations = 1 + parts(geometry.cols).0;
    out.copy_within(activations..activations + Line::count_for(even), 1 + Line::count_for(4 * even));
}

/// What [`prepare`] made: columns, their activations, the sum of these.
fn listed(vector: &[Line]) -> (&[u32], &[i8], i32) {
    let (head, lists) = vector.split_at(1);
    let head: &[i32] = bytemuck::cast_slice(head);
    let n = head[0] as usize;
    let (columns, activations) = lists.split_at(Line::count_for(4 * n));
    (&bytemuck::cast_slice(columns)[..n], &bytemuck::cast_slice(activations)[..n], head[1])
}
