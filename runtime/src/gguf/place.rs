//! Where each tensor lies, that none reaches out of the file or into another, and its type,
//! which for some numbers only the span of bytes decides.

use super::parse::{Header, RawTensor, cut_short, malformed};
use super::type_id::{Candidates, candidates, refuse};
use crate::checkpoint::{Tensor, TensorType, Value};
use crate::error::{Error, Place, Result};
use crate::mmap::Bytes;
use std::sync::Arc;

/// Gives every tensor of the header its bytes and its type, in the header's order.
pub(crate) fn place_tensors(file: &Arc<str>, bytes: &Bytes, header: &Header) -> Result<Vec<Tensor>> {
    let raw = &header.tensors;
    let data_len = bytes.len().saturating_sub(header.data_start) as u64;
    let mut order: Vec<usize> = (0..raw.len()).collect();
    order.sort_by_key(|&i| raw[i].offset);
    let mut spans = vec![0; raw.len()];
    for (n, &i) in order.iter().enumerate() {
        // An offset past the end gives a span of 0, which the check of sizes refuses.
        let end = order.get(n + 1).map_or(data_len, |&next| raw[next].offset);
        spans[i] = end.min(data_len).saturating_sub(raw[i].offset);
    }
    let placement = Placement {
        file,
        architecture: header
            .keys
            .get("general.architecture")
            .and_then(|&i| match &header.metadata[i].1 {
                Value::String(name) => Some(&**name),
                _ => None,
            })
            .unwrap_or("none"),
        header,
        data_len,
        spans: &spans,
    };
    let group = placement.q2_0_group()?;
    let mut tensors = Vec::with_capacity(raw.len());
    for index in 0..raw.len() {
        let (tensor_type, size) = placement.resolve(index, group)?;
        let raw = &raw[index];
        // `size <= span` was checked, and offset + span <= data_len by the loop above.
        let start = header.data_start + raw.offset as usize;
        let data = bytes.view(start..start + size).expect("offset and size were checked against the file");
        let (name, dims) = (raw.name.clone(), raw.dims.clone());
        let span = spans[index] as usize;
        tensors.push(Tensor::new(file.clone(), name, tensor_type, dims, start as u64, span, data));
    }
    Ok(tensors)
}

struct Placement<'a> {
    file: &'a str,
    architecture: &'a str,
    header: &'a Header,
    data_len: u64,
    spans: &'a [u64],
}

impl Placement<'_> {
    fn at(&self, index: usize) -> Place {
        let raw = &self.header.tensors[index];
        Place::file(self.file).at(raw.described_at).tensor(raw.name.clone())
    }

    /// Whether the tensor has exactly the span that this type needs, padding included.
    fn fits(&self, index: usize, ty: TensorType) -> bool {
        let (span, raw) = (self.spans[index], &self.header.tensors[index]);
        let size = ty.tensor_bytes(raw.weights / raw.dims[0], raw.dims[0]);
        size.is_some_and(|size| {
            let size = size as u64;
            size <= span && span - size < self.header.alignment as u64
        })
    }

    /// One file has one writer, so its tensors of type 42 all have the same size of group. Small
    /// tensors fit both sizes; then the others decide, and if none does, it is the current size.
    fn q2_0_group(&self) -> Result<TensorType> {
        let mut first: Option<(usize, TensorType)> = None;
        for (index, raw) in self.header.tensors.iter().enumerate() {
            if raw.type_id != TensorType::Q2_0.id() {
                continue;
            }
            let found = match (self.fits(index, TensorType::Q2_0), self.fits(index, TensorType::Q2_0G128)) {
                (true, false) => TensorType::Q2_0,
                (false, true) => TensorType::Q2_0G128,
                (true, true) => continue,
                (false, false) => return Err(self.ambiguous(index)),
            };
            match first {
                Some((other, ty)) if ty != found => {
                    let what = format!(
                        "the tensor has the size of {} but tensor `{}` that of {}",
                        found.name(),
                        crate::error::shown(&self.header.tensors[other].name),
                        ty.name()
                    );
                    return Err(cut_short(self.at(index), what));
                }
                Some(_) => {}
                None => first = Some((index, found)),
            }
        }
        Ok(first.map_or(TensorType::Q2_0, |(_, ty)| ty))
    }

    /// The type and the size in bytes, which is at most the span.
    fn resolve(&self, index: usize, q2_0: TensorType) -> Result<(TensorType, usize)> {
        let raw = &self.header.tensors[index];
        let span = self.spans[index];
        let ty = match candidates(raw.type_id) {
            Some(Candidates::One(ty)) => ty,
            Some(Candidates::BySpan(&[ty])) => {
                self.check_i2s(index)?;
                ty
            }
            Some(Candidates::BySpan(_)) => q2_0,
            None => {
                let at = self.at(index);
                return Err(refuse(at, self.architecture, raw, raw.weights as u64, span));
            }
        };
        let (rows, cols) = (raw.weights / raw.dims[0], raw.dims[0]);
        if !cols.is_multiple_of(ty.block_weights()) {
            let what = format!(
                "rows of {cols} weights cannot be cut in the blocks of {} that type {} has",
                ty.block_weights(),
                ty.name()
            );
            return Err(malformed(self.at(index), what, "convert the model with a type that fits its shapes"));
        }
        let Some(size) = ty.tensor_bytes(rows, cols) else {
            let what = format!("the tensor's dimensions {:?} are impossible", raw.dims);
            return Err(cut_short(self.at(index), what));
        };
        if size as u64 <= span {
            return Ok((ty, size));
        }
        if (raw.offset.checked_add(size as u64)).is_none_or(|end| end > self.data_len) {
            return Err(self.out_of_file(index, size as u64));
        }
        let next = self
            .header
            .tensors
            .iter()
            .enumerate()
            .filter(|&(i, t)| i != index && t.offset >= raw.offset && t.offset - raw.offset < size as u64);
        let next = next.min_by_key(|(_, t)| t.offset).map_or("", |(_, t)| &t.name);
        let what =
            format!("the tensor's {size} bytes overlap tensor `{}`, {span} bytes further", crate::error::shown(next));
        Err(cut_short(self.at(index), what))
    }

    fn out_of_file(&self, index: usize, size: u64) -> Error {
        let what = format!(
            "the tensor's {size} bytes at offset {} reach past the end of the file, \
             which has {} bytes of tensor data",
            self.header.tensors[index].offset, self.data_len
        );
        cut_short(self.at(index), what)
    }

    /// Type 36 is I2_S if its size says so.
    fn check_i2s(&self, index: usize) -> Result<()> {
        let raw = &self.header.tensors[index];
        let (rows, cols) = (raw.weights / raw.dims[0], raw.dims[0]);
        let needed = TensorType::I2S.tensor_bytes(rows, cols);
        let is_last = raw.offset.saturating_add(self.spans[index]) >= self.data_len;
        // The last tensor may be cut short, or have something behind it.
        if needed.is_none() || self.fits(index, TensorType::I2S) {
            return Ok(());
        }
        let other = (raw.weights as u64).checked_mul(18).map(|b| b / 32);
        let span = self.spans[index];
        let is_other = other.is_some_and(|b| b <= span && span - b < self.header.alignment as u64);
        if is_last && !is_other {
            return Ok(());
        }
        let seen = if is_other {
            "the size of IQ4_NL_4_4, which is not read"
        } else {
            "neither the size of I2_S nor that of IQ4_NL_4_4"
        };
        Err(Error::Unsupported {
            at: Box::new(self.at(index)),
            what: format!(
                "type 36 with {} weights in {span} bytes (I2_S needs {}), architecture `{}`, \
                 has {seen}",
                raw.weights,
                needed.unwrap_or_default(),
                crate::error::shown(self.architecture),
            ),
            fix: "use the model's I2_S file as its makers published it".into(),
        })
    }

    fn ambiguous(&self, index: usize) -> Error {
        let raw: &RawTensor = &self.header.tensors[index];
        let (rows, cols) = (raw.weights / raw.dims[0], raw.dims[0]);
        let size = |ty: TensorType| ty.tensor_bytes(rows, cols).map_or("impossible".into(), |b| format!("{b} bytes"));
        let what = format!(
            "type 42 (Q2_0) with {} weights in {} bytes fits neither groups of 64 ({}) \
             nor of 128 ({})",
            raw.weights,
            self.spans[index],
            size(TensorType::Q2_0),
            size(TensorType::Q2_0G128),
        );
        cut_short(self.at(index), what)
    }
}
