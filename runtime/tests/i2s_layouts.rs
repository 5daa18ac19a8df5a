//! One I2_S model in its three byte layouts: read as what it is, each says the same, bit for bit;
//! read as another, it does not.

use std::path::PathBuf;
use tritone_runtime::checkpoint::{I2sLayout, TensorType};
use tritone_runtime::gguf::{Gguf, Writer};
use tritone_runtime::model::{LoadOptions, Model, Source};

/// The published layout's bytes in another one, written out weight by weight.
fn rewritten(trits: &[Vec<i8>], layout: I2sLayout) -> Vec<u8> {
    let cols = trits[0].len();
    let mut bytes = vec![0; trits.len() * cols / 4];
    for (r, row) in trits.iter().enumerate() {
        for (c, trit) in row.iter().enumerate() {
            let (at, place) = match layout {
                I2sLayout::Published => (r * cols / 4 + c / 128 * 32 + c % 32, c % 128 / 32),
                I2sLayout::Arm => (r * cols / 4 + c / 64 * 16 + c % 16, c % 64 / 16),
                I2sLayout::Rows4 => (r / 4 * cols + c, r % 4),
            };
            bytes[at] |= ((trit + 1) as u8) << (6 - 2 * place);
        }
    }
    bytes
}

/// A copy of the file at `path` whose I2_S tensors have another layout.
fn write_copy(source: &Gguf, layout: I2sLayout, path: &PathBuf) {
    let mut writer = Writer::new();
    for (key, value) in source.metadata() {
        writer.key(key, value.clone());
    }
    for tensor in source.tensors() {
        writer.tensor(tensor.name(), tensor.dims(), tensor.tensor_type().id(), tensor.data().len());
    }
    let mut data = writer.begin(std::fs::File::create(path).unwrap()).unwrap();
    for tensor in source.tensors() {
        if tensor.tensor_type() != TensorType::I2S {
            data.write(tensor.data()).unwrap();
            continue;
        }
        let ternary = tensor.ternary().unwrap();
        let mut trits = vec![vec![0; tensor.cols()]; tensor.rows()];
        for (r, row) in trits.iter_mut().enumerate() {
            ternary.row_trits(r, row).unwrap();
        }
        let packed = rewritten(&trits, layout);
        data.write(&packed).unwrap();
        data.write(&tensor.data()[packed.len()..]).unwrap();
    }
    data.finish().unwrap();
}

fn logits(path: &PathBuf, i2s_layout: I2sLayout) -> Vec<u32> {
    let options = LoadOptions { threads: Some(1), i2s_layout, ..LoadOptions::default() };
    let model = Model::load(Source::File(path.clone()), &options, &mut |_| {}).unwrap();
    let mut session = model.session(None).unwrap();
    session.prefill(&[1, 5, 9, 200], 0).unwrap().iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn every_layout_says_the_same() {
    let published = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bitnet-relu2/model-i2_s.gguf");
    let source = Gguf::open(&published).unwrap();
    let expected = logits(&published, I2sLayout::Published);
    let folder = std::env::temp_dir().join(format!("tritone-i2s-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for layout in I2sLayout::ALL {
        let path = folder.join(format!("{}.gguf", layout.name()));
        write_copy(&source, layout, &path);
        for read_as in I2sLayout::ALL {
            assert_eq!(logits(&path, read_as) == expected, read_as == layout, "{layout:?} read as {read_as:?}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
