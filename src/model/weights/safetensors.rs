//! Safetensors files, mapped into memory: one file, or shards with an index.
//!
//! The header is untrusted: every offset is checked against the file before a [`Tensor`] exists.
//! Format: <https://huggingface.co/docs/safetensors>.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Bytes, Dtype, Tensor, WeightsError, map};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_SHARDS: usize = 4096;
const MAX_DIMS: usize = 8;
const HEADER_START: usize = 8;

/// Every tensor of a checkpoint folder, by name.
pub fn open_folder(folder: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return open_file(&single);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        return open_shards(folder, &index);
    }
    let message =
        format!("neither {SINGLE} nor {INDEX} is here; other weight formats must be converted to safetensors");
    Err(WeightsError::File { file: folder.display().to_string(), message })
}

/// Every tensor of one file, by name.
pub fn open_file(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let file_name = path.display().to_string();
    let bytes = map(path).map_err(|source| WeightsError::Io { file: file_name.clone(), source })?;
    parse(&file_name, bytes)
}

/// Reads the header of `bytes`; `file` is for error messages.
pub fn parse(file: &str, bytes: Arc<dyn Bytes>) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let data = bytes.as_bytes();
    let (header, data_start) =
        read_header(data).map_err(|message| WeightsError::File { file: file.into(), message })?;
    let data_len = data.len() - data_start;
    let mut tensors = BTreeMap::new();
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let (dtype, info) = check_entry(&value, data_len).map_err(|message| WeightsError::Entry {
            file: file.into(),
            tensor: name.clone(),
            message,
        })?;
        let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
        let tensor = Tensor::new(name.as_str().into(), dtype, info.shape, bytes.clone(), range);
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn read_header(data: &[u8]) -> Result<(Map<String, Value>, usize), String> {
    let Some(length) = data.first_chunk::<HEADER_START>() else {
        return Err(format!("{} bytes are too few for a safetensors file", data.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("the header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed"));
    }
    let end = HEADER_START + length as usize;
    let Some(header) = data.get(HEADER_START..end) else {
        return Err(format!("the header claims {length} bytes, but the file has {}; is it truncated?", data.len()));
    };
    match serde_json::from_slice(header) {
        Ok(Value::Object(map)) => Ok((map, end)),
        Ok(_) => Err("the header is not a JSON object".into()),
        Err(error) => Err(format!("the header is not JSON: {error}")),
    }
}

fn check_entry(value: &Value, data_len: usize) -> Result<(Dtype, TensorInfo), String> {
    if let Some(dtype) = value.get("dtype").and_then(Value::as_str)
        && !matches!(dtype, "F32" | "F16" | "BF16")
    {
        return Err(format!("dtype {dtype:.32} is not supported; supported: F32, F16, BF16"));
    }
    let info = TensorInfo::deserialize(value).map_err(|error| format!("malformed header entry: {error}"))?;
    let dtype = match info.dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        other => return Err(format!("dtype {other:?} is not supported; supported: F32, F16, BF16")),
    };
    if info.shape.len() > MAX_DIMS {
        return Err(format!("{} dimensions; at most {MAX_DIMS} are allowed", info.shape.len()));
    }
    let (start, end) = info.data_offsets;
    if start > end || end > data_len {
        return Err(format!("offsets {start}..{end} lie outside the {data_len} bytes of data; is the file truncated?"));
    }
    let num_bytes = info.shape.iter().try_fold(dtype.block_bytes(), |n, dim| n.checked_mul(*dim));
    if num_bytes != Some(end - start) {
        let shape = &info.shape;
        return Err(format!("shape {shape:?} of {dtype} does not fill its {} bytes of data", end - start));
    }
    Ok((dtype, info))
}

fn open_shards(folder: &Path, index: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let index_name = index.display().to_string();
    let fail = |message: String| WeightsError::File { file: index_name.clone(), message };
    let io = |source| WeightsError::Io { file: index_name.clone(), source };
    let size = std::fs::metadata(index).map_err(io)?.len();
    if size > MAX_HEADER_BYTES {
        return Err(fail(format!("{size} bytes; at most {MAX_HEADER_BYTES} are allowed")));
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(index).map_err(io)?;
    let Index { weight_map } = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    let shards: BTreeSet<&String> = weight_map.values().collect();
    if shards.len() > MAX_SHARDS {
        return Err(fail(format!("{} shards; at most {MAX_SHARDS} are allowed", shards.len())));
    }
    let mut tensors = BTreeMap::new();
    for shard in shards {
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(fail(format!("shard {shard:?} is not a plain file name")));
        }
        for (name, tensor) in open_file(&folder.join(shard))? {
            if weight_map.get(&name) != Some(shard) {
                return Err(fail(format!("tensor `{name}` is in {shard}, where the index does not put it")));
            }
            tensors.insert(name, tensor);
        }
    }
    match weight_map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        Some((name, shard)) => Err(fail(format!("tensor `{name}` is not in {shard}"))),
        None => Ok(tensors),
    }
}
