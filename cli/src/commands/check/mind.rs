//! The model's mind: does it predict plain English better than chance, and if not, would it under
//! other settings?
//!
//! What a file does not tell (the byte layout of I2_S, and of some models the gate function) shows
//! only in what the model says. Read in a wrong layout it knows nothing and sounds certain: such
//! models need about as many bits for a token as `log2` of the vocabulary, what guessing without any
//! knowledge needs, or more. A model that knows no more than how often each token occurs needs about
//! 0.65 to 0.8 of that. So above 0.8 a model counts as not having been read as it was trained.
//! Measured on the text here: the story model in the binary has 0.47, an early one, as weak as a
//! model can be, 0.69; the story model in a wrong layout has 0.92 (`arm`) and 1.1 (`rows4` with
//! another gate), and models with random weights have 1.4 to 1.6.

use super::{CheckArgs, Report};
use crate::args::{Gate, I2sBytes, ModelArgs, model_name};
use crate::failure::{RUNTIME, Result, Stop};
use crate::load;
use serde_json::{Value, json};
use std::fmt;
use std::time::Instant;
use tritone_runtime::checkpoint::I2sLayout;
use tritone_runtime::config::{Activation, Architecture};
use tritone_runtime::evaluate::{Likelihood, Window, score};
use tritone_runtime::model::Model;
use tritone_runtime::tokenizer::SpecialTokens;

/// Facts in plain words, as any English text would do.
pub const TEXT: &str = include_str!("text.txt");

/// The share of the bits of guessing from which on a model knows nothing; see the module's head.
const NEAR_CHANCE: f64 = 0.8;

/// Other settings are better only if they save more bits than this share: int8 activations and
/// half-precision caches move the figure by far less.
const CLEARLY_FEWER: f64 = 0.9;

pub struct Mind {
    /// None where the model gave logits that are not finite.
    likelihood: Option<Likelihood>,
    /// Bits that guessing needs for a token.
    chance: f64,
    tried: Vec<Tried>,
    seconds: f64,
}

/// Other settings and what came of them.
struct Tried {
    flags: String,
    /// Bits per token, or why there are none.
    bits: std::result::Result<f64, String>,
}

impl Mind {
    /// Measures, and tries other settings if the model needs it.
    pub fn examine(model: &Model, args: &CheckArgs, has_i2s: bool, report: &mut Report) -> Result<Mind> {
        let began = Instant::now();
        let chance = (model.config().vocab_size as f64).log2();
        let likelihood = measure(model)?;
        let bits = likelihood.as_ref().ok().and_then(Likelihood::bits_per_token);
        let lost = bits.is_none_or(|bits| bits > NEAR_CHANCE * chance);
        // Files of `bitnet` do not say which gate they were trained with.
        let try_gates = lost || args.try_all || model.config().architecture == Architecture::Bitnet;
        let try_layouts = has_i2s && (lost || args.try_all);
        let mut tried = Vec::new();
        for setting in others(model, &args.model, try_layouts, try_gates) {
            tried.push(attempt(&setting, &args.model)?);
        }
        let best = choose(bits, chance, &tried);
        let name = model_name(args.model.model.as_deref());
        let now = match &likelihood {
            Ok(_) => {
                format!("{:.2} bits per token of plain English, where guessing needs {chance:.2}", bits.unwrap_or(0.0))
            }
            Err(error) => format!("no numbers at all ({error})"),
        };
        match best {
            Some((found, best)) if lost => report.problem(format!(
                "as it is read now {name} knows nothing: {now}; with {} it needs {best:.2}: \
                 add that to every command (engines that cannot do so print 'GGGGG' or the like)",
                found.flags
            )),
            Some((found, best)) => report.problem(format!(
                "{name} makes sense ({now}) but was trained with other settings: with {} it needs {best:.2}; \
                 add that to every command",
                found.flags
            )),
            None if lost && tried.is_empty() => report.problem(format!(
                "{name} knows nothing ({now}) and has no settings that could change it: \
                 its weights are random, damaged, or not for English text"
            )),
            None if lost => report.problem(format!(
                "{name} knows nothing ({now}) and nothing tried helps ({}): \
                 its weights are random, damaged, or not for English text",
                tried.iter().map(|tried| tried.flags.as_str()).collect::<Vec<_>>().join("; ")
            )),
            None => {}
        }
        Ok(Mind { likelihood: likelihood.ok(), chance, tried, seconds: began.elapsed().as_secs_f64() })
    }

    pub fn to_json(&self) -> Value {
        let tried = |tried: &Tried| {
            json!({
                "flags": tried.flags,
                "bits_per_token": tried.bits.as_ref().ok(),
                "error": tried.bits.as_ref().err(),
            })
        };
        json!({
            "scored_tokens": self.likelihood.as_ref().map(Likelihood::tokens),
            "bits_per_token": self.likelihood.as_ref().and_then(Likelihood::bits_per_token),
            "bits_per_byte": self.likelihood.as_ref().and_then(Likelihood::bits_per_byte),
            "bits_of_guessing": self.chance,
            "tried": self.tried.iter().map(tried).collect::<Vec<_>>(),
            "seconds": self.seconds,
        })
    }
}

impl fmt::Display for Mind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nmind")?;
        match &self.likelihood {
            Some(likelihood) => writeln!(
                f,
                "  {:.2} bits per token, {:.2} per byte, over {} tokens of plain English; guessing needs {:.2} per token ({:.1} s)",
                likelihood.bits_per_token().unwrap_or(f64::NAN),
                likelihood.bits_per_byte().unwrap_or(f64::NAN),
                likelihood.tokens(),
                self.chance,
                self.seconds
            )?,
            None => writeln!(f, "  its output is not finite ({:.1} s)", self.seconds)?,
        }
        for tried in &self.tried {
            match &tried.bits {
                Ok(bits) => writeln!(f, "  {bits:.2} bits per token with {}", tried.flags)?,
                Err(error) => writeln!(f, "  with {}: {error}", tried.flags)?,
            }
        }
        Ok(())
    }
}

/// The settings that make sense of a model which needs `now` bits per token, if there are any. Of those
/// that do about equally well it is the first.
fn choose(now: Option<f64>, chance: f64, tried: &[Tried]) -> Option<(&Tried, f64)> {
    let mut best: Option<(&Tried, f64)> = None;
    for (tried, bits) in tried.iter().filter_map(|tried| Some((tried, *tried.bits.as_ref().ok()?))) {
        let known = best.map(|(_, bits)| bits).or(now);
        if bits <= NEAR_CHANCE * chance && known.is_none_or(|known| bits < CLEARLY_FEWER * known) {
            best = Some((tried, bits));
        }
    }
    best
}

/// How well a model predicts the text, or that its output is not finite. Other errors are not about
/// the model.
fn measure(model: &Model) -> Result<std::result::Result<Likelihood, String>> {
    let tokenizer = model.tokenizer();
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut ids = tokenizer.encode(TEXT, SpecialTokens::Plain, begin.is_some());
    ids.truncate(model.config().context_length);
    if ids.len() < 2 {
        return Ok(Err("its context has no room for two tokens".to_owned()));
    }
    let mut session = model.session(None)?;
    let mut likelihood = Likelihood::default();
    let window = Window { tokens: 0..ids.len(), scored: 1..ids.len() };
    let scored = score(&mut session, &ids, &window, begin, 0, &mut |index, nll| {
        likelihood.add(nll, tokenizer.token_bytes(ids[index]).len());
    });
    Ok(scored.map(|()| likelihood).map_err(|error| error.to_string()))
}

/// A byte layout and a gate function.
#[derive(Clone, Copy)]
struct Setting {
    layout: I2sBytes,
    gate: Gate,
    /// What has to be said on the command line beyond what was said.
    flags: [Option<&'static str>; 2],
}

impl Setting {
    fn flags(&self) -> String {
        self.flags.iter().flatten().copied().collect::<Vec<_>>().join(" ")
    }
}

/// All settings but the one in use, those that differ in one thing first.
fn others(model: &Model, args: &ModelArgs, try_layouts: bool, try_gates: bool) -> Vec<Setting> {
    let layouts = [
        (I2sBytes::Published, "--i2s-layout published"),
        (I2sBytes::Arm, "--i2s-layout arm"),
        (I2sBytes::Rows4, "--i2s-layout rows4"),
    ];
    let mut settings = Vec::new();
    for (layout, layout_flag) in layouts {
        let same_layout = I2sLayout::from(layout) == args.i2s_layout.into();
        if !same_layout && !try_layouts {
            continue;
        }
        for (gate, gate_flag) in [(Gate::Relu2, "--ffn relu2"), (Gate::Silu, "--ffn silu")] {
            let same_gate = Activation::from(gate) == model.config().activation;
            if (!same_gate && !try_gates) || (same_layout && same_gate) {
                continue;
            }
            // What was said already has to be said again.
            let gate_said = !same_gate || args.ffn.is_some();
            let layout_said = !same_layout || !matches!(layout, I2sBytes::Published);
            let flags = [layout_said.then_some(layout_flag), gate_said.then_some(gate_flag)];
            settings.push((usize::from(!same_layout) + usize::from(!same_gate), Setting { layout, gate, flags }));
        }
    }
    settings.sort_by_key(|(changes, _)| *changes);
    settings.into_iter().map(|(_, setting)| setting).collect()
}

/// Loads the model under other settings and measures it.
fn attempt(setting: &Setting, args: &ModelArgs) -> Result<Tried> {
    let args = ModelArgs { i2s_layout: setting.layout, ffn: Some(setting.gate), verbose: false, ..args.clone() };
    let bits = match load::model(&args) {
        Ok(model) => measure(&model)?.map(|likelihood| likelihood.bits_per_token().unwrap_or(f64::INFINITY)),
        Err(Stop::Error { message, status: RUNTIME, .. }) => Err(message),
        Err(other) => return Err(other),
    };
    Ok(Tried { flags: setting.flags(), bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(now: Option<f64>, tried: &[(&str, Option<f64>)]) -> Option<String> {
        let tried = tried.iter().map(|(flags, bits)| Tried {
            flags: (*flags).to_owned(),
            bits: bits.ok_or_else(|| "not finite".to_owned()),
        });
        choose(now, 17.0, &tried.collect::<Vec<_>>()).map(|(tried, _)| tried.flags.clone())
    }

    #[test]
    fn a_setting_has_to_be_clearly_better() {
        // BitNet-b1.58-2B-4T with SiLU has a perplexity near 100 where 17 is right.
        let gates = [("--ffn relu2", Some(17f64.log2()))];
        assert_eq!(chosen(Some(100f64.log2()), &gates).as_deref(), Some("--ffn relu2"));
        assert_eq!(chosen(Some(18f64.log2()), &gates), None);
    }

    #[test]
    fn near_chance_nothing_counts_as_better() {
        assert_eq!(chosen(Some(25.0), &[("--i2s-layout arm", Some(16.5)), ("--i2s-layout rows4", None)]), None);
        assert_eq!(chosen(None, &[("--i2s-layout arm", Some(16.5)), ("--i2s-layout rows4", None)]), None);
    }

    #[test]
    fn of_equals_the_smaller_change_is_named() {
        let tried = [("--i2s-layout rows4", Some(15.0)), ("--i2s-layout arm", Some(4.0)), ("arm and silu", Some(3.9))];
        assert_eq!(chosen(Some(18.0), &tried).as_deref(), Some("--i2s-layout arm"));
        assert_eq!(chosen(None, &tried).as_deref(), Some("--i2s-layout arm"));
    }
}
