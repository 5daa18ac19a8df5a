//! A small model as a folder whose files can be changed before it is written.

#![allow(dead_code, reason = "each test uses some of it")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tritone_runtime::checkpoint::Checkpoint;
use tritone_runtime::error::Error;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::safetensors;

pub const WEIGHTS: &str = "model.safetensors";

/// A folder that is written when it is opened and removed afterwards.
#[derive(Clone)]
pub struct Folder(pub BTreeMap<String, Vec<u8>>);

pub struct Written(pub PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

impl Folder {
    /// A good one: packed weights with scales, a head of its own.
    pub fn llama() -> Folder {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama-silu-bitlinear");
        let names = ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
        Folder(names.map(|name| (name.to_owned(), std::fs::read(path.join(name)).unwrap())).into())
    }

    pub fn without(mut self, name: &str) -> Folder {
        self.0.remove(name).unwrap();
        self
    }

    pub fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Folder {
        self.0.insert(name.to_owned(), bytes.into());
        self
    }

    pub fn json(mut self, name: &str, edit: impl FnOnce(&mut Value)) -> Folder {
        let mut value = serde_json::from_slice(&self.0[name]).unwrap();
        edit(&mut value);
        self.0.insert(name.to_owned(), serde_json::to_vec(&value).unwrap());
        self
    }

    /// `config.json` with another value at `key`.
    pub fn config(self, key: &str, value: Value) -> Folder {
        self.json("config.json", |config| config[key] = value)
    }

    /// Header and data of the weights.
    pub fn split(&self) -> (Value, Vec<u8>) {
        let file = &self.0[WEIGHTS];
        let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&file[8..8 + len]).unwrap(), file[8 + len..].to_vec())
    }

    /// Another header text before the same data.
    pub fn header_text(self, text: &str) -> Folder {
        let (_, data) = self.split();
        self.with(WEIGHTS, file_of(text, &data))
    }

    pub fn header(self, edit: impl FnOnce(&mut Value)) -> Folder {
        let (mut header, _) = self.split();
        edit(&mut header);
        self.header_text(&header.to_string())
    }

    /// Other bytes at the start of a tensor's data.
    pub fn data(self, tensor: &str, bytes: &[u8]) -> Folder {
        let (header, mut data) = self.split();
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + bytes.len()].copy_from_slice(bytes);
        self.with(WEIGHTS, file_of(&header.to_string(), &data))
    }

    /// The weights as a list, so that one can be left out, added or given to another file.
    pub fn tensors(&self) -> Vec<Tensor> {
        let (header, data) = self.split();
        let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
        let range = |entry: &Value| {
            let end = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            end(0)..end(1)
        };
        tensors.map(|(name, entry)| (name.clone(), entry.clone(), data[range(entry)].to_vec())).collect()
    }

    pub fn write(&self) -> Written {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tritone-folder-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let written = Written(path);
        for (name, bytes) in &self.0 {
            std::fs::write(written.0.join(name), bytes).unwrap();
        }
        written
    }

    pub fn load(&self) -> Result<Model, Error> {
        let written = self.write();
        let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
        Model::load(Source::File(written.0.clone()), &options, &mut |_| {})
    }

    /// The folder without its weights being loaded.
    pub fn open(&self) -> Result<Checkpoint, Error> {
        safetensors::open(&self.write().0)
    }

    /// The folder is refused in one sentence that has all of these in it.
    #[track_caller]
    pub fn refused(&self, parts: &[&str]) {
        let message = self.load().err().expect("this folder must be refused").to_string();
        assert!(!message.contains('\n') && message.len() < 900, "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

pub type Tensor = (String, Value, Vec<u8>);

pub fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file of these tensors, one after the other.
pub fn pack(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut all) = (serde_json::Map::new(), Vec::new());
    for (name, entry, data) in tensors {
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([all.len(), all.len() + data.len()]);
        all.extend(data);
        header.insert(name.clone(), entry);
    }
    file_of(&Value::Object(header).to_string(), &all)
}
