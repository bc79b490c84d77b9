//! The GGUF container, versions 2 and 3 (ggml's docs/gguf.md): header, metadata, table of tensors.
//!
//! The file is untrusted. Nothing is allocated by a count that it states, only by what was really read; every
//! length and offset is checked against the file before it is used, and what the table of tensors promises
//! cannot exceed the file.
//!
//! Invariant: every range in a [`Container`] lies within the bytes, and a tensor's range has the size that its
//! shape and type imply.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::error::{GgufError, quoted};
use super::metadata::{Kind, Metadata, Value};
use super::types;
use crate::model::weights::{Bytes, Dtype};

const MAGIC: &[u8] = b"GGUF";
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
/// What the format allows.
const MAX_KEY_BYTES: usize = (1 << 16) - 1;
const MAX_TENSOR_NAME_BYTES: usize = 64;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A file that has been read as far as its table of tensors.
pub struct Container {
    pub bytes: Arc<dyn Bytes>,
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    pub dtype: Dtype,
    /// Row-major, slowest dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    /// Within the file.
    pub range: Range<usize>,
}

impl Container {
    pub fn read(bytes: Arc<dyn Bytes>) -> Result<Container, GgufError> {
        let mut cursor = Cursor { bytes: bytes.as_bytes(), at: 0 };
        let (num_tensors, num_keys) = header(&mut cursor)?;
        let mut values = BTreeMap::new();
        for index in 0..num_keys {
            let key = cursor.name(MAX_KEY_BYTES, || format!("key {index}"))?;
            let value = value(&mut cursor, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(GgufError::key(key, "is there twice"));
            }
        }
        let metadata = Metadata::new(bytes.clone(), values);
        let tensors = table(&mut cursor, num_tensors, alignment(&metadata)?)?;
        Ok(Container { bytes, metadata, tensors })
    }
}

fn header(cursor: &mut Cursor) -> Result<(u64, u64), GgufError> {
    if cursor.take(MAGIC.len() as u64, || "the header".into())? != MAGIC {
        return Err(GgufError::Header("is not a GGUF file: it does not begin with `GGUF`".into()));
    }
    let version = cursor.u32(|| "the header".into())?;
    if !(2..=3).contains(&version) {
        let big_endian = if version.swap_bytes() < 16 { " (the file is big-endian)" } else { "" };
        let message = format!("has GGUF version {version}{big_endian}; supported: 2 and 3, little-endian");
        return Err(GgufError::Header(message));
    }
    let num_tensors = cursor.u64(|| "the header".into())?;
    let num_keys = cursor.u64(|| "the header".into())?;
    for (what, count, max) in [("tensors", num_tensors, MAX_TENSORS), ("keys", num_keys, MAX_KEYS)] {
        if count > max {
            return Err(GgufError::Header(format!("claims {count} {what}; the limit is {max}")));
        }
    }
    Ok((num_tensors, num_keys))
}

fn value(cursor: &mut Cursor, key: &str) -> Result<Value, GgufError> {
    let what = || format!("key {}", quoted(key));
    let kind = kind(cursor, key)?;
    if kind != Kind::List {
        return Ok(Value::One { kind, range: extent(cursor, kind, &what)? });
    }
    let kind = self::kind(cursor, key)?;
    let len = cursor.u64(what)?;
    let start = cursor.at;
    match kind.bytes() {
        Some(size) => {
            // A product that overflows cannot fit into the file either.
            cursor.take(len.saturating_mul(size as u64), what)?;
        }
        None if kind == Kind::List => return Err(GgufError::key(key, "is a list of lists, which is not supported")),
        None => {
            for _ in 0..len {
                extent(cursor, kind, &what)?;
            }
        }
    }
    Ok(Value::List { kind, len: len as usize, range: start..cursor.at })
}

fn kind(cursor: &mut Cursor, key: &str) -> Result<Kind, GgufError> {
    let number = cursor.u32(|| format!("key {}", quoted(key)))?;
    Kind::from_number(number).ok_or_else(|| GgufError::key(key, format!("has value type {number}; known: 0 to 12")))
}

fn extent(cursor: &mut Cursor, kind: Kind, what: &dyn Fn() -> String) -> Result<Range<usize>, GgufError> {
    let size = match kind.bytes() {
        Some(size) => size as u64,
        None => cursor.u64(what)?,
    };
    cursor.take(size, what)?;
    Ok(cursor.at - size as usize..cursor.at)
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.count(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    // The format asks for multiples of eight, which also lets every element be read in place.
    if alignment == 0 || !alignment.is_multiple_of(8) || alignment > MAX_ALIGNMENT {
        let message = format!("is {alignment}; expected a multiple of 8 up to {MAX_ALIGNMENT}");
        return Err(GgufError::key(KEY, message));
    }
    Ok(alignment)
}

/// A tensor whose place in the data is not checked yet.
struct Promise {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    size: u64,
}

fn table(cursor: &mut Cursor, count: u64, alignment: u64) -> Result<BTreeMap<String, TensorEntry>, GgufError> {
    let promises = (0..count).map(|i| promise(cursor, i, alignment)).collect::<Result<Vec<_>, _>>()?;
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let available = (cursor.bytes.len() as u64).saturating_sub(data_start);
    let mut tensors = BTreeMap::new();
    let mut total = 0u64;
    for promise in promises {
        let Promise { name, dtype, shape, offset, size } = promise;
        let end = offset.saturating_add(size);
        if end > available {
            let what = format!("tensor {}", quoted(&name));
            let start = data_start.saturating_add(offset) as usize;
            let end = data_start.saturating_add(end);
            return Err(GgufError::Truncated { what, start, end, len: cursor.bytes.len() });
        }
        // Overlapping tensors would let a small file ask for a lot of memory.
        total = total.saturating_add(size);
        if total > available {
            return Err(GgufError::tensor(name, "overlaps other tensors of the file"));
        }
        let start = (data_start + offset) as usize;
        let entry = TensorEntry { dtype, shape, range: start..start + size as usize };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(GgufError::tensor(name, "is there twice"));
        }
    }
    Ok(tensors)
}

fn promise(cursor: &mut Cursor, index: u64, alignment: u64) -> Result<Promise, GgufError> {
    let name = cursor.name(MAX_TENSOR_NAME_BYTES, || format!("the name of tensor {index}"))?;
    let what = || format!("the entry of tensor {}", quoted(&name));
    let num_dimensions = cursor.u32(what)?;
    if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
        return Err(GgufError::tensor(
            name,
            format!("has {num_dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}"),
        ));
    }
    let mut shape = Vec::with_capacity(MAX_DIMENSIONS as usize);
    for _ in 0..num_dimensions {
        shape.push(cursor.u64(what)?);
    }
    shape.reverse();
    let number = cursor.u32(what)?;
    let offset = cursor.u64(what)?;
    let dtype = types::dtype(number).map_err(|message| GgufError::tensor(&name, message))?;
    let size = types::size(dtype, &shape).map_err(|message| GgufError::tensor(&name, message))?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::tensor(name, format!("lies at offset {offset}, which is no multiple of {alignment}")));
    }
    // Dimensions are at least one and their product fits `u64`; sizes beyond the address space exceed any file.
    let shape = shape.into_iter().map(|n| n as usize).collect();
    Ok(Promise { name, dtype, shape, offset, size })
}

/// Reads forward through bytes that may end anywhere.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64, what: impl Fn() -> String) -> Result<&'a [u8], GgufError> {
        let left = self.bytes.len() - self.at;
        if count > left as u64 {
            let end = (self.at as u64).saturating_add(count);
            return Err(GgufError::Truncated { what: what(), start: self.at, end, len: self.bytes.len() });
        }
        let taken = &self.bytes[self.at..self.at + count as usize];
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: impl Fn() -> String) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: impl Fn() -> String) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: impl Fn() -> String) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn name(&mut self, max: usize, what: impl Fn() -> String) -> Result<String, GgufError> {
        let len = self.u64(&what)?;
        if len > max as u64 {
            return Err(GgufError::Header(format!("{} has {len} bytes; the limit is {max}", what())));
        }
        let bytes = self.take(len, &what)?;
        let name = std::str::from_utf8(bytes);
        name.map(str::to_string).map_err(|_| GgufError::Header(format!("{} is not UTF-8", what())))
    }
}
