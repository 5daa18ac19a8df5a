//! Metadata values: the thirteen types of GGUF, and arrays of twelve of them.
//!
//! Arrays keep the bytes of the file (little-endian, strings with their lengths before them), so
//! a vocabulary of 128 thousand strings costs its own size and one allocation. The bytes are
//! checked once, when an [`Array`] is made, which is why reading one cannot fail.

use std::fmt;

/// The type of a metadata value, with the number that stands for it in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The number in the file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value; nothing for strings and arrays, whose length varies.
    pub fn fixed_size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The value if it is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// Reads a value of a fixed-size type. `bytes` has exactly that size; a bool that is neither
    /// 0 nor 1 gives nothing.
    pub(crate) fn from_le(ty: ValueType, bytes: &[u8]) -> Option<Self> {
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U64 => Self::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::Bool => match bytes {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                _ => return None,
            },
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Appends the value as it stands in a file, without its type.
    pub(crate) fn write_le(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.extend(v.to_le_bytes()),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::String(v) => write_string(v, out),
            Self::Array(v) => {
                out.extend(v.element.id().to_le_bytes());
                out.extend((v.len as u64).to_le_bytes());
                out.extend_from_slice(&v.bytes);
            }
        }
    }
}

/// A string as GGUF stores it: a 64-bit length, then the bytes.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Type and value as messages show them: `u32 7`, `string "llama"`, `array of 3 strings`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(v) => write!(f, "string \"{}\"", crate::error::shown(v)),
            Self::Array(v) => write!(f, "array of {} {}s", v.len, v.element.name()),
            Self::F32(v) => write!(f, "f32 {v}"),
            Self::F64(v) => write!(f, "f64 {v}"),
            Self::Bool(v) => write!(f, "bool {v}"),
            other => {
                let number = other.as_integer().unwrap_or_default();
                write!(f, "{} {number}", other.value_type().name())
            }
        }
    }
}

/// An array of values of one type; arrays inside arrays are not supported.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    element: ValueType,
    len: usize,
    bytes: Box<[u8]>,
}

/// Why bytes are not an array: the element and what is wrong with it.
pub(crate) struct BadElement {
    pub(crate) index: usize,
    pub(crate) why: &'static str,
}

impl Array {
    /// Checks `bytes`, the elements as they stand in the file, one after the other.
    pub(crate) fn new(element: ValueType, len: usize, bytes: Box<[u8]>) -> Result<Self, BadElement> {
        let fail = |index, why| Err(BadElement { index, why });
        match element.fixed_size() {
            Some(size) if len.checked_mul(size) != Some(bytes.len()) => {
                return fail(0, "its bytes and its count disagree");
            }
            Some(_) if element == ValueType::Bool => {
                if let Some(index) = bytes.iter().position(|&b| b > 1) {
                    return fail(index, "a bool is neither 0 nor 1");
                }
            }
            Some(_) => {}
            None if element == ValueType::Array => return fail(0, "it is an array itself"),
            None => {
                let mut rest = &bytes[..];
                for index in 0..len {
                    let Some((text, tail)) = split_string(rest) else {
                        return fail(index, "its length reaches past the end");
                    };
                    if std::str::from_utf8(text).is_err() {
                        return fail(index, "it is not UTF-8");
                    }
                    rest = tail;
                }
                if !rest.is_empty() {
                    return fail(len, "there are bytes after the last element");
                }
            }
        }
        Ok(Self { element, len, bytes })
    }

    /// An array of strings.
    pub fn from_strings<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Self {
        let mut bytes = Vec::new();
        let mut len = 0;
        for item in items {
            write_string(item.as_ref(), &mut bytes);
            len += 1;
        }
        Self { element: ValueType::String, len, bytes: bytes.into() }
    }

    /// An array of `u32`.
    pub fn from_u32s(items: &[u32]) -> Self {
        Self::from_fixed(ValueType::U32, items.iter().map(|v| v.to_le_bytes()))
    }

    /// An array of `i32`.
    pub fn from_i32s(items: &[i32]) -> Self {
        Self::from_fixed(ValueType::I32, items.iter().map(|v| v.to_le_bytes()))
    }

    /// An array of `f32`.
    pub fn from_f32s(items: &[f32]) -> Self {
        Self::from_fixed(ValueType::F32, items.iter().map(|v| v.to_le_bytes()))
    }

    fn from_fixed<const N: usize>(element: ValueType, items: impl ExactSizeIterator<Item = [u8; N]>) -> Self {
        Self { element, len: items.len(), bytes: items.flatten().collect() }
    }

    /// The type of its elements.
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order, if they are strings.
    pub fn strings(&self) -> Option<Strings<'_>> {
        (self.element == ValueType::String).then_some(Strings { left: self.len, rest: &self.bytes })
    }

    /// The elements in order, if they are not strings.
    pub fn scalars(&self) -> Option<impl ExactSizeIterator<Item = Value> + '_> {
        let (element, size) = (self.element, self.element.fixed_size()?);
        Some(
            self.bytes
                .chunks_exact(size)
                .map(move |bytes| Value::from_le(element, bytes).expect("checked when the array was made")),
        )
    }
}

fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

/// Iterator over the strings of an [`Array`].
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    left: usize,
    rest: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (text, rest) = split_string(self.rest)?;
        self.rest = rest;
        self.left -= 1;
        Some(std::str::from_utf8(text).expect("checked when the array was made"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// A Rust type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// What messages call it: `an unsigned 32-bit integer`.
    const EXPECTED: &'static str;

    /// The value, or nothing if it is of another type or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! integer_from_value {
    ($($ty:ty: $expected:literal, $array:literal;)*) => {$(
        /// Any integer type whose value fits.
        impl FromValue<'_> for $ty {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &Value) -> Option<Self> {
                value.as_integer()?.try_into().ok()
            }
        }

        /// An array of any integer type whose values all fit.
        impl FromValue<'_> for Vec<$ty> {
            const EXPECTED: &'static str = $array;

            fn from_value(value: &Value) -> Option<Self> {
                array_of(value)
            }
        }
    )*};
}

integer_from_value! {
    u32: "an integer from 0 to 4294967295", "an array of integers from 0 to 4294967295";
    i32: "a signed 32-bit integer", "an array of signed 32-bit integers";
    u64: "an integer that is not negative", "an array of integers that are not negative";
    usize: "an integer that is not negative", "an array of integers that are not negative";
}

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a finite number";

    /// f32, f64 rounded, or an integer below 2^24 in magnitude, which is exact.
    fn from_value(value: &Value) -> Option<Self> {
        let number = match *value {
            Value::F32(v) => v,
            Value::F64(v) => v as f32,
            _ => {
                let integer = value.as_integer()?;
                if integer.abs() >= 1 << 24 {
                    return None;
                }
                integer as f32
            }
        };
        number.is_finite().then_some(number)
    }
}

impl FromValue<'_> for Vec<f32> {
    const EXPECTED: &'static str = "an array of finite numbers";

    fn from_value(value: &Value) -> Option<Self> {
        array_of(value)
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a bool";

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a string";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for Strings<'a> {
    const EXPECTED: &'static str = "an array of strings";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(v) => v.strings(),
            _ => None,
        }
    }
}

fn array_of<T: for<'v> FromValue<'v>>(value: &Value) -> Option<Vec<T>> {
    let Value::Array(array) = value else {
        return None;
    };
    array.scalars()?.map(|v| T::from_value(&v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_integer_width_that_fits() {
        assert_eq!(u32::from_value(&Value::I64(7)), Some(7));
        assert_eq!(u32::from_value(&Value::I8(-1)), None);
        assert_eq!(u32::from_value(&Value::U64(1 << 32)), None);
        assert_eq!(i32::from_value(&Value::U32(u32::MAX)), None);
        assert_eq!(u32::from_value(&Value::F32(7.0)), None);
        assert_eq!(f32::from_value(&Value::U32(10000)), Some(10000.0));
        assert_eq!(f32::from_value(&Value::U32(1 << 24)), None);
        assert_eq!(f32::from_value(&Value::F64(f64::MAX)), None);
        assert_eq!(f32::from_value(&Value::F32(f32::NAN)), None);
    }

    #[test]
    fn arrays_give_back_what_went_in() {
        let strings = Array::from_strings(["a", "", "Ġb"]);
        let all: Vec<_> = strings.strings().unwrap().collect();
        assert_eq!(all, ["a", "", "Ġb"]);
        assert_eq!(strings.strings().unwrap().len(), 3);
        assert!(strings.scalars().is_none());

        let numbers = Value::Array(Array::from_i32s(&[1, -2]));
        assert_eq!(Vec::<i32>::from_value(&numbers), Some(vec![1, -2]));
        assert_eq!(Vec::<u32>::from_value(&numbers), None);
        assert_eq!(Vec::<f32>::from_value(&numbers), Some(vec![1.0, -2.0]));
        assert!(Strings::from_value(&numbers).is_none());
    }

    #[test]
    fn bad_arrays_are_refused() {
        let why = |ty, len, bytes: &[u8]| Array::new(ty, len, bytes.into()).err().unwrap().why;
        assert_eq!(why(ValueType::Bool, 2, &[1, 2]), "a bool is neither 0 nor 1");
        assert_eq!(why(ValueType::U32, 2, &[0; 7]), "its bytes and its count disagree");
        assert_eq!(why(ValueType::U64, usize::MAX, &[0; 8]), "its bytes and its count disagree");
        let invalid = [1, 0, 0, 0, 0, 0, 0, 0, 0xff];
        assert_eq!(why(ValueType::String, 1, &invalid), "it is not UTF-8");
        assert_eq!(why(ValueType::String, 1, &[255; 8]), "its length reaches past the end");
        assert_eq!(why(ValueType::String, 0, &[0]), "there are bytes after the last element");
    }
}
