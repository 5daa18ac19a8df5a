//! `modules.json` and what it leads to: whether a model makes embeddings, and how it pools.
//!
//! Folders of embedding models list the steps that follow one another: the transformer, the pooling, the L2 norm.
//! `type` is the name of a class, `path` the folder in which its configuration lies.

use super::folder::small;
use super::{from_json, malformed};
use crate::config::Pooling;
use crate::error::{Error, Place, Result, shown};
use serde::Deserialize;
use std::path::{Component, Path};

const MODULES: &str = "modules.json";

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// A pooling's `config.json`: one flag for each way, or the name of the way.
#[derive(Deserialize)]
struct PoolingConfig {
    word_embedding_dimension: Option<u32>,
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
}

/// How the model in a folder pools vectors of `hidden` elements; nothing if it does not make embeddings.
pub(super) fn read(folder: &Path, hidden: u32) -> Result<Option<Pooling>> {
    let path = folder.join(MODULES);
    if !path.exists() {
        return Ok(None);
    }
    let file = path.display().to_string();
    let modules: Vec<Module> = from_json(&file, &small(&path)?)?;
    let mut pooling = None;
    for module in &modules {
        // Some files name the class alone, others its modules too.
        let class = module.kind.rsplit('.').next().unwrap_or_default();
        match class {
            "Transformer" | "Normalize" => {}
            "Pooling" if pooling.is_none() => pooling = Some(read_pooling(folder, &file, &module.path, hidden)?),
            _ => {
                return Err(Error::Unsupported {
                    at: Box::new(Place::file(&*file)),
                    what: format!("the model has a step of type '{}'", shown(&module.kind)),
                    fix: "models that are a transformer, one pooling and a norm run here".to_owned(),
                });
            }
        }
    }
    match pooling {
        Some(pooling) => Ok(Some(pooling)),
        None => Err(malformed(Place::file(&*file), "no step of it pools".to_owned())),
    }
}

fn read_pooling(folder: &Path, modules: &str, path: &str, hidden: u32) -> Result<Pooling> {
    // One plain name: what the list says must not lead out of the folder.
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    if !matches!(parts[..], [Component::Normal(_)]) || path.contains(['/', '\\', '\0']) {
        let what = format!("the folder '{}' does not lie in the model's folder", shown(path));
        return Err(malformed(Place::file(modules), what));
    }
    let path = folder.join(path).join("config.json");
    let file = path.display().to_string();
    let config: PoolingConfig = from_json(&file, &small(&path)?)?;
    let refused = |what: String| Error::Unsupported {
        at: Box::new(Place::file(&*file)),
        what,
        fix: "cls, mean and lasttoken are pooled here, one of them at a time".to_owned(),
    };
    if let Some(width) = config.word_embedding_dimension.filter(|width| *width != hidden) {
        return Err(malformed(
            Place::file(&*file),
            format!("vectors of {width} elements in a model of width {hidden}"),
        ));
    }
    let ways = [
        (config.pooling_mode_cls_token, "cls"),
        (config.pooling_mode_mean_tokens, "mean"),
        (config.pooling_mode_lasttoken, "lasttoken"),
        (config.pooling_mode_max_tokens, "max"),
        (config.pooling_mode_mean_sqrt_len_tokens, "mean_sqrt_len_tokens"),
        (config.pooling_mode_weightedmean_tokens, "weightedmean"),
    ];
    let mut chosen: Vec<&str> = ways.iter().filter(|(set, _)| *set).map(|(_, way)| *way).collect();
    chosen.extend(config.pooling_mode.as_deref());
    chosen.dedup();
    match chosen[..] {
        ["cls"] => Ok(Pooling::First),
        ["mean"] => Ok(Pooling::Mean),
        ["lasttoken"] => Ok(Pooling::Last),
        [] => Err(refused("no way of pooling is chosen".to_owned())),
        _ => Err(refused(format!("the way of pooling is '{}'", shown(&chosen.join(", "))))),
    }
}
