//! A random model of a shape, for the time of the measurement or kept in a folder.

use super::{BenchArgs, value_name, watched};
use crate::commands::synth::{self, SynthArgs};
use crate::failure::{Result, Stop};
use crate::interrupt::Watch;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A model file; a temporary one is removed when this is dropped.
pub struct Made {
    path: PathBuf,
    temporary: bool,
}

impl Made {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.temporary {
            // There is nothing more to be done about a file that can't be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the model, or finds the one that was kept.
pub fn make(shape: &str, args: &BenchArgs, watch: &Watch) -> Result<Made> {
    let made = match &args.cache {
        Some(folder) if !folder.is_dir() => {
            return Err(Stop::usage(
                format_args!("{} is no folder", folder.display()),
                "--cache takes a folder that is there",
            ));
        }
        Some(folder) => Made { path: folder.join(kept_name(shape, args)?), temporary: false },
        None => {
            let name = format!("tritone-bench-{}.gguf", std::process::id());
            Made { path: std::env::temp_dir().join(name), temporary: true }
        }
    };
    // Files appear whole or not at all, so one that is there is complete.
    if !made.temporary && made.path.is_file() {
        return Ok(made);
    }
    let synth = SynthArgs {
        shape: shape.to_owned(),
        output: made.path.clone(),
        seed: 0,
        zeros: synth::ZEROS,
        relu_density: args.relu_density,
        ternary: args.ternary,
        embedding: args.embedding,
        force: made.temporary,
        quiet: args.quiet,
        json: false,
    };
    watched(watch, move || synth::make(&synth))?;
    Ok(made)
}

/// A name that says everything that the file depends on.
fn kept_name(shape: &str, args: &BenchArgs) -> Result<String> {
    let mut name = "tritone-".to_owned();
    if shape.ends_with(".json") {
        let bytes = fs::read(shape).map_err(|error| Stop::unreadable(shape, &error))?;
        let stem = Path::new(shape).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        name.push_str(&stem);
        name.push('-');
        for byte in &Sha256::digest(&bytes)[..4] {
            name.push_str(&format!("{byte:02x}"));
        }
    } else {
        name.push_str(shape);
    }
    let mut add = |option: Option<String>| {
        if let Some(option) = option {
            name.push('-');
            name.push_str(&option);
        }
    };
    add(args.ternary.map(value_name));
    add(args.embedding.map(value_name));
    add(args.relu_density.map(|density| density.to_string()));
    name.push_str(concat!("-", env!("CARGO_PKG_VERSION"), ".gguf"));
    Ok(name.replace(['/', '\\'], "_"))
}
