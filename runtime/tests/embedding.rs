//! Embedding models: the vectors of an independent forward pass, the same bits however the work is done, and from GGUF.

mod embedding_models;

use embedding_models::{Folder, HIDDEN, KINDS, as_gguf, cosine, load, references, write_gguf};
use std::path::Path;
use tritone_runtime::config::Pooling;
use tritone_runtime::embedding::{EmbedOptions, Embedder};
use tritone_runtime::model::Model;
use tritone_runtime::safetensors;

fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    vectors.iter().map(|vector| vector.iter().map(|x| x.to_bits()).collect()).collect()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

/// Rounding the cache to halves flips some int8 codes: 0.99985 was measured where it flips most.
#[test]
fn vectors_are_those_of_the_reference() {
    for kind in KINDS {
        let folder = Folder::new(kind).write();
        let model = load(&folder.0).unwrap();
        let mut embedder = Embedder::new(&model).unwrap();
        assert_eq!((embedder.dimensions(), embedder.pooling(), embedder.warning()), (HIDDEN, Pooling::Last, None));
        let references = references(kind);
        let texts: Vec<Vec<u32>> = references.iter().map(|(text, ..)| embedder.tokens(text)).collect();
        assert!(texts.iter().zip(&references).all(|(tokens, (_, ids, _))| tokens == ids));
        let vectors = embedder.embed(&texts).unwrap();
        let cosines: Vec<f64> = vectors.iter().zip(&references).map(|(a, (.., b))| cosine(a, b)).collect();
        println!("{kind}: cosines {cosines:?}");
        assert!(cosines.iter().all(|cosine| *cosine > 0.995), "{kind}: {cosines:?}");
        for vector in &vectors {
            assert!((embedder.similarity(vector, vector) - 1.0).abs() < 1e-6);
        }
    }
}

/// What a configuration says must show in the vector of the long text, whose cosine is 0.99986 or more without the edit.
#[test]
fn rules_that_are_changed_change_the_vectors() {
    type Edit = (&'static str, fn(&mut serde_json::Value));
    let edits: [Edit; 7] = [
        ("gemma3", |config| config["sliding_window"] = 24.into()),
        ("gemma3", |config| config["sliding_window"] = serde_json::Value::Null),
        ("gemma3", |config| config["layer_types"] = vec!["sliding_attention"; 7].into()),
        ("gemma3", |config| config["rope_parameters"]["sliding_attention"]["rope_theta"] = 500.0.into()),
        ("gemma3", |config| config["rope_parameters"]["full_attention"]["rope_theta"] = 500.0.into()),
        ("gemma3", |config| config["query_pre_attn_scalar"] = 5000.into()),
        ("qwen3", |config| config["rope_parameters"]["rope_theta"] = 500.0.into()),
    ];
    for (i, (kind, edit)) in edits.into_iter().enumerate() {
        let folder = Folder::new(kind).json("config.json", edit).write();
        let model = load(&folder.0).unwrap();
        let (_, ids, expected) = references(kind).pop().unwrap();
        let cosine = cosine(&Embedder::new(&model).unwrap().embed(&[ids]).unwrap()[0], &expected);
        println!("edit {i}: cosine {cosine}");
        assert!(cosine < 0.9975, "edit {i}: {cosine}");
    }
}

/// Alone, with others, in any order and in chunks of any length: the same bits. Texts cross chunks and share them.
#[test]
fn vectors_do_not_depend_on_company() {
    for kind in KINDS {
        let folder = Folder::new(kind).write();
        let model = load(&folder.0).unwrap();
        let mut embedder = Embedder::new(&model).unwrap();
        let mut texts: Vec<Vec<u32>> = references(kind).into_iter().map(|(_, ids, _)| ids).collect();
        texts.extend((1..40).map(|n| (0..n).map(|i| (i * i * 7 + n) % 640).collect()));
        // Together they need several steps, and the long one is cut by some of them.
        assert!(texts.iter().map(Vec::len).sum::<usize>() > 2 * 512);
        let alone: Vec<Vec<f32>> =
            texts.iter().map(|text| embedder.embed(std::slice::from_ref(text)).unwrap().remove(0)).collect();
        for chunk in [0, 1, 7, 100] {
            let options = EmbedOptions { chunk, ..EmbedOptions::default() };
            let mut embedder = Embedder::with_options(&model, &options).unwrap();
            let mut done = 0;
            let together = embedder.embed_with(&texts, &mut |tokens| done += tokens).unwrap();
            assert_eq!(done, texts.iter().map(Vec::len).sum::<usize>());
            assert!(bits(&together) == bits(&alone), "{kind}, chunks of {chunk}");
            texts.reverse();
            let mut reversed = embedder.embed(&texts).unwrap();
            texts.reverse();
            reversed.reverse();
            assert!(bits(&reversed) == bits(&alone), "{kind}, chunks of {chunk}, reversed");
        }
        assert!(embedder.embed(&[]).unwrap().is_empty());
    }
}

#[test]
fn gguf_gives_the_same_bits() {
    for kind in KINDS {
        let (folder, path) = as_gguf(kind, |_, value| Some(value.clone()));
        let [ours, theirs] = [&folder.0, &path].map(|path| {
            let mut embedder = Embedder::new(&load(path).unwrap()).unwrap();
            let texts: Vec<_> = references(kind).iter().map(|(text, ..)| embedder.tokens(text)).collect();
            (bits(&embedder.embed(&texts).unwrap()), texts)
        });
        assert!(ours == theirs, "{kind}");
    }
}

#[test]
fn pooling_is_what_the_model_says_or_the_user() {
    let folder = Folder::new("qwen3").write();
    let model = load(&folder.0).unwrap();
    let ids = references("qwen3").remove(0).1;
    let embed = |model: &Model, pooling| {
        let options = EmbedOptions { pooling, chunk: 4, ..EmbedOptions::default() };
        let mut embedder = Embedder::with_options(model, &options).unwrap();
        (embedder.embed(std::slice::from_ref(&ids)).unwrap().remove(0), embedder.warning().map(str::to_owned))
    };
    let (last, _) = embed(&model, Some(Pooling::Last));
    assert!(same(&last, &embed(&model, None).0));
    let mut others = Vec::new();
    for (pooling, flag) in [(Pooling::Mean, "pooling_mode_mean_tokens"), (Pooling::First, "pooling_mode_cls_token")] {
        let (vector, warning) = embed(&model, Some(pooling));
        assert!(warning.unwrap().contains("last token"));
        assert!(cosine(&vector, &last) < 0.9, "{pooling}");
        // A model that says so itself.
        let config = serde_json::json!({ (flag): true });
        let folder = Folder::new("qwen3").json("1_Pooling/config.json", |file| *file = config).write();
        let (own, warning) = embed(&load(&folder.0).unwrap(), None);
        assert!(same(&own, &vector) && warning.is_none());
        others.push(vector);
    }
    // The first token sees only itself. The mean of two lies between them.
    let mut embedder = Embedder::new(&model).unwrap();
    let [first, last] = [&ids[..1], &ids[..2]].map(|ids| embedder.embed(&[ids.to_vec()]).unwrap().remove(0));
    assert!(same(&first, &others[1]));
    let options = EmbedOptions { pooling: Some(Pooling::Mean), ..EmbedOptions::default() };
    let mean = Embedder::with_options(&model, &options).unwrap().embed(&[ids[..2].to_vec()]).unwrap().remove(0);
    let [ab, ma, mb] = [(&first, &last), (&mean, &first), (&mean, &last)].map(|(a, b)| cosine(a, b));
    let (a, b) = ((ma - ab * mb) / (1.0 - ab * ab), (mb - ab * ma) / (1.0 - ab * ab));
    assert!(a > 0.1 && b > 0.1, "{a} of the first, {b} of the last");
    for ((m, x), y) in mean.iter().zip(&first).zip(&last) {
        assert!((f64::from(*m) - a * f64::from(*x) - b * f64::from(*y)).abs() < 1e-6);
    }
}

#[test]
fn shorter_vectors_have_length_one_too() {
    let folder = Folder::new("qwen3").write();
    let mut embedder = Embedder::new(&load(&folder.0).unwrap()).unwrap();
    let vector = embedder.embed(&[vec![5, 6, 1]]).unwrap().remove(0);
    let short = embedder.shorten(&vector, 32).unwrap();
    assert_eq!(short.len(), 32);
    assert!((embedder.similarity(&short, &short) - 1.0).abs() < 1e-6);
    assert!(cosine(&short, &vector[..32]) > 0.999_999);
    for bad in [0, HIDDEN + 1] {
        assert!(embedder.shorten(&vector, bad).unwrap_err().to_string().contains("from 1 to 128"));
    }
}

#[test]
fn texts_that_do_not_fit_are_named() {
    let folder = Folder::new("qwen3").write();
    let model = load(&folder.0).unwrap();
    let mut embedder = Embedder::new(&model).unwrap();
    let good = vec![3, 1];
    let refused = |embedder: &mut Embedder, bad: Vec<u32>, says: &str| {
        let message = embedder.embed(&[good.clone(), bad]).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    };
    refused(&mut embedder, vec![1; 513], "text 2 has 513 tokens but the context holds 512");
    refused(&mut embedder, vec![], "text 2 has no tokens");
    refused(&mut embedder, vec![640], "below 640");
    assert_eq!(embedder.embed(&[vec![1; 512]]).unwrap().len(), 1);
    let options = |context_length| EmbedOptions { context_length: Some(context_length), ..EmbedOptions::default() };
    let mut short = Embedder::with_options(&model, &options(4)).unwrap();
    refused(&mut short, vec![1; 5], "the context holds 4");
    for bad in [0, 513] {
        let message = Embedder::with_options(&model, &options(bad)).err().unwrap().to_string();
        assert!(message.contains("from 1 to 512"), "{message}");
    }
}

/// Nothing is generated with a model that has no head, and any other model makes vectors, with a warning.
#[test]
fn embedding_models_say_nothing_and_others_can_be_pooled() {
    let folder = Folder::new("gemma3").write();
    let model = load(&folder.0).unwrap();
    for error in [model.session(None).err(), tritone_runtime::batch::Batch::new(&model).err()] {
        assert!(error.unwrap().to_string().contains("`tritone embed`"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bitnet-relu2/model-i2_s.gguf");
    let model = load(&path).unwrap();
    let mut embedder = Embedder::new(&model).unwrap();
    assert_eq!(embedder.pooling(), Pooling::Mean);
    assert!(embedder.warning().unwrap().contains("not trained for embeddings"));
    let texts = ["The king was old.", "The king was very old.", ""].map(|text| embedder.tokens(text));
    let tokenizer = model.tokenizer();
    assert_eq!(texts[2], Vec::from_iter(tokenizer.bos().filter(|_| tokenizer.adds_bos())));
    assert_eq!(embedder.embed(&texts[..2]).unwrap()[1].len(), embedder.dimensions());
    model.session(None).unwrap();
}

#[test]
fn vectors_that_are_not_finite_are_refused() {
    let mut folder = Folder::new("qwen3");
    // The largest bfloat16.
    folder.tensors.get_mut("norm.weight").unwrap().bits.fill(0x7f7f);
    let folder = folder.write();
    let message = Embedder::new(&load(&folder.0).unwrap()).unwrap().embed(&[vec![5, 1]]).unwrap_err().to_string();
    assert!(message.contains("not finite"), "{message}");
}

/// Gemma's way of writing a tokenizer: ids as the `tokenizers` package gives them, from the folder and from GGUF.
#[test]
fn tokens_of_gemma() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gemma-tokenizer");
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    let mut folder = Folder::new("gemma3").json("config.json", |config| config["bos_token_id"] = 2.into());
    folder.files.insert("tokenizer.json".to_owned(), read("tokenizer.json"));
    // The name in this file is not the one of the template, as in models that were made from chat models.
    let folder = folder.json("tokenizer_config.json", |config| config["eos_token"] = "<pad>".into()).write();
    let file = folder.0.join("model.gguf");
    write_gguf(&safetensors::open(&folder.0).unwrap(), &file, |_, value| Some(value.clone()));
    let known: Vec<serde_json::Value> = serde_json::from_slice(&read("ids.json")).unwrap();
    for path in [&folder.0, &file] {
        let model = load(path).unwrap();
        let embedder = Embedder::new(&model).unwrap();
        for known in &known {
            let text = known["text"].as_str().unwrap();
            let ids: Vec<u32> = known["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(embedder.tokens(text), ids, "{text:?}");
            assert_eq!(model.tokenizer().decode(&ids), text.as_bytes(), "{text:?}");
        }
    }
}

/// Qwen's folders name the token that ends a turn; the one that a text ends with stands in the tokenizer's template.
#[test]
fn a_template_knows_the_end_token() {
    let special = |name: &str| serde_json::json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let end_after = |single: serde_json::Value, named: serde_json::Value| {
        let steps = serde_json::json!([{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single}]);
        let template = serde_json::json!({"type": "Sequence", "processors": steps});
        let folder = Folder::new("qwen3").json("tokenizer.json", |tokenizer| tokenizer["post_processor"] = template);
        let folder = folder.json("tokenizer_config.json", |config| *config = named).write();
        Embedder::new(&load(&folder.0).unwrap()).unwrap().tokens("a")
    };
    let turn = serde_json::json!({"eos_token": "<|begin_of_text|>"});
    let a = 67;
    assert_eq!(end_after(serde_json::json!([text, special("<|eot_id|>")]), turn.clone()), [a, 2]);
    // Without one the configuration of the model comes before that of the tokenizer.
    assert_eq!(end_after(serde_json::json!([text]), turn.clone()), [a, 1]);
    let begins = serde_json::json!([special("<|begin_of_text|>"), text, special("<|end_of_text|>")]);
    assert_eq!(end_after(begins, turn), [0, a, 1]);
}
