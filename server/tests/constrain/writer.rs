//! Writes answers under a grammar as bad models would.

use std::path::Path;
use std::sync::LazyLock;
use tritone_runtime::gguf::Gguf;
use tritone_runtime::tokenizer::{Tokenizer, Utf8Stream};
use tritone_server::constrain::{Grammar, Grammars};
use tritone_server::engine::job::Constraint;

pub struct Model {
    pub tokenizer: Tokenizer,
    pub grammars: Grammars,
}

impl Model {
    pub fn new(tokenizer: Tokenizer) -> Self {
        let grammars = Grammars::new(&tokenizer).unwrap();
        Self { tokenizer, grammars }
    }
}

/// The vocabularies of the story model and of the small test models.
pub static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        "models/story.gguf",
        "runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf",
        "runtime/tests/data/models/llama-silu-bitlinear/model-i2_s.gguf",
        "runtime/tests/data/models/qwen3-group128/model-q2_0.gguf",
    ];
    let open = |file: &str| Tokenizer::from_checkpoint(&Gguf::open(root.join(file)).unwrap()).unwrap();
    files.iter().map(|file| Model::new(open(file))).collect()
});

/// Xorshift; the seed may be anything.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// What a bad model likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taste {
    /// All the same.
    Anything,
    /// Never to end a string, a number, a list or an object.
    Endless,
    /// To open ever more objects and lists, and to go on in them.
    Opening,
    /// The longest tokens.
    Long,
}

pub const TASTES: [Taste; 4] = [Taste::Anything, Taste::Endless, Taste::Opening, Taste::Long];

#[derive(Debug)]
pub struct Written {
    pub text: String,
    pub tokens: usize,
    /// Whether it ended by itself.
    pub ended: bool,
}

/// The tokens that a constraint allows.
pub fn allowed(constraint: &mut dyn Constraint, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut mask = vec![0_u32; tokenizer.vocab_size().div_ceil(32)];
    constraint.allow(&mut mask).unwrap();
    (0..tokenizer.vocab_size() as u32).filter(|&id| mask[id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

pub fn choose(allowed: &[u32], tokenizer: &Tokenizer, taste: Taste, random: &mut Random) -> u32 {
    let bytes = |id: u32| tokenizer.token_bytes(id);
    let liked: Vec<u32> = match taste {
        Taste::Anything => Vec::new(),
        Taste::Endless => {
            let ends = |id: u32| tokenizer.is_end(id) || bytes(id).iter().any(|byte| b"\"}],".contains(byte));
            allowed.iter().copied().filter(|&id| !ends(id)).collect()
        }
        Taste::Opening => {
            let opens = |id: u32| bytes(id).iter().any(|byte| b"[{,".contains(byte));
            allowed.iter().copied().filter(|&id| opens(id)).collect()
        }
        Taste::Long => {
            let most = allowed.iter().map(|&id| bytes(id).len()).max().unwrap_or(0);
            allowed.iter().copied().filter(|&id| bytes(id).len() + 1 >= most).collect()
        }
    };
    *random.pick(if liked.is_empty() { allowed } else { &liked })
}

/// Writes an answer of at most `budget` tokens.
pub fn write(model: &Model, grammar: &Grammar, budget: usize, taste: Taste, seed: u64) -> Written {
    let mut constraint = grammar.constraint(budget).unwrap();
    let mut random = Random::new(seed);
    let (mut utf8, mut text) = (Utf8Stream::new(), String::new());
    for tokens in 0..budget {
        let allowed = allowed(constraint.as_mut(), &model.tokenizer);
        assert!(!allowed.is_empty(), "nothing is allowed after {text:?}");
        let token = choose(&allowed, &model.tokenizer, taste, &mut random);
        constraint.accept(token).unwrap();
        if model.tokenizer.is_end(token) {
            text.push_str(&utf8.finish());
            return Written { text, tokens: tokens + 1, ended: true };
        }
        text.push_str(&utf8.push(model.tokenizer.token_bytes(token)));
    }
    text.push_str(&utf8.finish());
    Written { text, tokens: budget, ended: false }
}
