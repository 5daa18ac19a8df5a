//! Times on a vocabulary of 128 k tokens, which lies beside the repository. Not a benchmark: generous limits that only
//! something wrong exceeds; the times are printed.

use crate::writer::{Model, Random, TASTES};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tritone_runtime::gguf::Gguf;
use tritone_runtime::tokenizer::Tokenizer;
use tritone_server::constrain::{Format, Tool, ToolChoice, Tools};

fn vocabulary() -> Option<Tokenizer> {
    let root = std::env::var_os("TRITONE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join("vectors/tokenizer/ggml-vocab-llama-bpe.gguf");
    if !path.exists() {
        assert!(std::env::var_os("TRITONE_SHARED").is_none(), "{} is not there", path.display());
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(Tokenizer::from_checkpoint(&Gguf::open(&path).unwrap()).unwrap())
}

#[test]
fn large_vocabulary() {
    let Some(tokenizer) = vocabulary() else { return };
    let began = Instant::now();
    let model = Model::new(tokenizer);
    println!("tokens taken in {:.1?}", began.elapsed());
    let began = Instant::now();
    model.grammars.compile(Format::JsonObject, None).unwrap();
    println!("and laid out in {:.1?}", began.elapsed());
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}},
        "address": {"type": "object", "properties": {
            "street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "country": {"enum": ["DE", "FR"]},
        }, "required": ["street", "zip", "country"], "additionalProperties": false},
    }, "required": ["name", "age", "email", "tags", "address"], "additionalProperties": false});
    let tools: Vec<Tool> = (0..20)
        .map(|i| Tool { name: format!("tool_{i}"), description: None, parameters: Some(person.clone()) })
        .collect();
    let tools = Tools::new(tools, ToolChoice::Auto, true).unwrap();
    let forms: [(&str, Format, Option<&Tools>); 4] = [
        ("any object", Format::JsonObject, None),
        ("a person", Format::JsonSchema(&person), None),
        ("any JSON", Format::JsonSchema(&Value::Bool(true)), None),
        ("20 tools", Format::Text, Some(&tools)),
    ];
    for (name, format, tools) in forms {
        let began = Instant::now();
        let grammar = model.grammars.compile(format, tools).unwrap().unwrap();
        let compiled = began.elapsed();
        let began = Instant::now();
        drop(grammar.constraint(500).unwrap());
        println!("{name}: compiled in {compiled:.1?}, begun in {:.1?}", began.elapsed());
        for taste in TASTES {
            let mut constraint = grammar.constraint(500).unwrap();
            let mut random = Random::new(1);
            let mut times = Vec::new();
            let mut accept = Duration::ZERO;
            let mut mask = vec![0_u32; model.tokenizer.vocab_size().div_ceil(32)];
            for _ in 0..500 {
                mask.fill(0);
                let began = Instant::now();
                constraint.allow(&mut mask).unwrap();
                times.push(began.elapsed());
                let allowed: Vec<u32> =
                    (0..mask.len() as u32 * 32).filter(|&id| mask[id as usize / 32] >> (id % 32) & 1 == 1).collect();
                let token = crate::writer::choose(&allowed, &model.tokenizer, taste, &mut random);
                if model.tokenizer.is_end(token) {
                    break;
                }
                let began = Instant::now();
                constraint.accept(token).unwrap();
                accept += began.elapsed();
            }
            let steps = times.len();
            let mean = times.iter().sum::<Duration>() / steps as u32;
            times.sort_unstable();
            println!(
                "  {taste:?}: {steps} steps, mean {mean:.1?}, median {:.1?}, 99 of 100 {:.1?}, worst {:.1?}; accept {:.1?}",
                times[steps / 2],
                times[steps * 99 / 100],
                times[steps - 1],
                accept / steps as u32,
            );
            assert!(mean < Duration::from_millis(50), "{name}: {mean:?}");
        }
    }
}
