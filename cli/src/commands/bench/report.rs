//! Everything that was measured, as JSON and as CSV.

use super::ceilings::{Bandwidth, Ceilings};
use super::cold::Cold;
use super::measure::{Plan, Profiled, Speeds};
use super::spread::Spread;
use super::{BenchArgs, name_of};
use serde_json::{Map, Value, json};
use tritone_runtime::budget::{KernelRate, TokenBytes};
use tritone_runtime::config::Activation;
use tritone_runtime::model::Model;
use tritone_runtime::profile::Part;
use tritone_runtime::skipped::Density;

/// The figures of all numbers of threads.
pub struct Report {
    pub model: String,
    pub architecture: String,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub relu_squared: bool,
    pub processor: Option<String>,
    pub isa: &'static str,
    pub gemv: &'static str,
    pub gemm: &'static str,
    pub prompt: usize,
    pub generate: usize,
    pub depth: usize,
    pub repeats: usize,
    pub weight_bytes: u64,
    /// Bytes of the cache where the peak of memory was measured.
    pub peak_cache_bytes: u64,
    /// Tokens before the decoded one, for which the next are.
    pub context: usize,
    /// If nothing could be skipped.
    pub token_bytes: TokenBytes,
    pub price_per_hour: Option<f64>,
    pub watts: Option<f64>,
    pub runs: Vec<Run>,
}

/// The figures of one number of threads.
pub struct Run {
    pub threads: usize,
    pub cold: Cold,
    pub ceilings: Ceilings,
    pub speeds: Speeds,
    /// What decoding reads for a token, with the density measured here.
    pub token_bytes: TokenBytes,
}

impl Report {
    pub fn new(args: &BenchArgs, model: &Model, plan: &Plan) -> Report {
        let config = model.config();
        let context = plan.mean_context();
        Report {
            model: name_of(args, model),
            architecture: config.architecture_name.clone(),
            layers: config.n_layers,
            hidden: config.hidden,
            ffn: config.ffn,
            relu_squared: config.activation == Activation::ReluSquared,
            processor: processor(),
            isa: model.isa().level().name(),
            gemv: model.gemv_kernel(),
            gemm: model.gemm_kernel(),
            prompt: plan.prompt,
            generate: plan.generate,
            depth: plan.depth,
            repeats: plan.repeats,
            weight_bytes: model.weight_bytes(),
            peak_cache_bytes: model.cache_bytes(super::cold::context(plan)),
            context,
            token_bytes: model.bytes_per_token(context, Density::default()),
            price_per_hour: args.price_per_hour,
            watts: args.watts,
            runs: Vec::new(),
        }
    }

    /// Share of the bandwidth that decoding reaches at its median.
    pub fn bandwidth_share(&self, run: &Run) -> f64 {
        let read = run.token_bytes.total() as f64 * run.speeds.decode.median;
        read / run.ceilings.weights.bytes_per_second.max
    }

    /// What a million tokens cost at a speed, if the price is known.
    pub fn cost(&self, tokens_per_second: f64) -> Option<f64> {
        self.price_per_hour.map(|price| price / 3600.0 / tokens_per_second * 1e6)
    }

    /// Kilowatt hours of a million tokens at a speed, if the power is known.
    pub fn energy(&self, tokens_per_second: f64) -> Option<f64> {
        self.watts.map(|watts| watts / tokens_per_second * 1e6 / 3.6e6)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": self.model,
                "architecture": self.architecture,
                "layers": self.layers,
                "hidden": self.hidden,
                "ffn": self.ffn,
                "weight_bytes": self.weight_bytes,
            },
            "machine": {"processor": self.processor, "isa": self.isa},
            "kernels": {"gemv": self.gemv, "gemm": self.gemm},
            "options": {
                "prompt_tokens": self.prompt,
                "decode_tokens": self.generate,
                "depth": self.depth,
                "repeats": self.repeats,
                "price_per_hour": self.price_per_hour,
                "watts": self.watts,
            },
            "bytes_per_token": self.bytes_json(&self.token_bytes),
            "runs": self.runs.iter().map(|run| self.run_json(run)).collect::<Vec<_>>(),
        })
    }

    fn bytes_json(&self, bytes_of: &TokenBytes) -> Value {
        let mut bytes = Map::new();
        bytes.insert("context".to_owned(), json!(self.context));
        for (part, n) in bytes_of.parts() {
            bytes.insert(part.to_owned(), json!(n));
        }
        bytes.insert("total".to_owned(), json!(bytes_of.total()));
        Value::Object(bytes)
    }

    fn run_json(&self, run: &Run) -> Value {
        let Run { threads, cold, ceilings, speeds, token_bytes } = run;
        let speed = |speed: &Spread| {
            json!({
                "tokens_per_second": speed.to_json(),
                "cost_per_million": self.cost(speed.median),
                "kwh_per_million": self.energy(speed.median),
            })
        };
        let mut decode = speed(&speeds.decode);
        decode["bandwidth_share"] = json!(self.bandwidth_share(run));
        let batches = speeds
            .batches
            .iter()
            .map(|batch| json!({"tokens": batch.tokens, "tokens_per_second": batch.tokens_per_second.to_json()}));
        json!({
            "threads": threads,
            "first_token_seconds": cold.first_token_seconds.to_json(),
            "load_seconds": cold.load_seconds.to_json(),
            "peak_memory_bytes": cold.peak_memory,
            "peak_memory_context": cold.context,
            "weights_and_cache_bytes": self.weight_bytes + self.peak_cache_bytes,
            "ceilings": {
                "weights": bandwidth_json(&ceilings.weights),
                "memory": ceilings.memory.as_ref().map(bandwidth_json),
                "gemv_in_cache": kernel_json(&ceilings.gemv),
                "gemm_in_cache": kernel_json(&ceilings.gemm),
            },
            "prefill": speed(&speeds.prefill),
            "decode": decode,
            "decode_reads": self.bytes_json(token_bytes),
            "density": {
                "up_rows": speeds.density.up_rows,
                "down_columns": speeds.density.down_columns,
                "head_low_rows": speeds.density.head_low_rows,
                "head_rows": speeds.density.head_rows,
            },
            "batches": batches.collect::<Vec<_>>(),
            "profile": speeds.profiles.as_ref().map(|profiles| {
                json!({"prefill": profiled_json(&profiles.prefill), "decode": profiled_json(&profiles.decode)})
            }),
        })
    }

    /// A line for each figure: `model,threads,figure,unit,median,min,max`.
    pub fn to_csv(&self) -> String {
        let mut csv = Csv { text: "model,threads,figure,unit,median,min,max\n".to_owned(), model: quoted(&self.model) };
        for (part, bytes) in self.token_bytes.parts() {
            csv.one("", &format!("bytes_per_token_{part}"), "B", bytes as f64);
        }
        for run in &self.runs {
            let threads = run.threads.to_string();
            let t = threads.as_str();
            let Run { cold, ceilings, speeds, .. } = run;
            csv.line(t, "prefill", "tokens/s", speeds.prefill);
            csv.line(t, "decode", "tokens/s", speeds.decode);
            for batch in &speeds.batches {
                csv.line(t, &format!("batch_{}", batch.tokens), "tokens/s", batch.tokens_per_second);
            }
            csv.one(t, "decode_reads", "B", run.token_bytes.total() as f64);
            let density = speeds.density;
            let shares = [
                ("up_rows", density.up_rows),
                ("down_columns", density.down_columns),
                ("head_low_rows", density.head_low_rows),
                ("head_rows", density.head_rows),
            ];
            for (name, share) in shares {
                if let Some(share) = share {
                    csv.one(t, &format!("density_{name}"), "1", share);
                }
            }
            csv.one(t, "decode_bandwidth_share", "1", self.bandwidth_share(run));
            csv.line(t, "first_token", "s", cold.first_token_seconds);
            csv.line(t, "load", "s", cold.load_seconds);
            if let Some(peak) = cold.peak_memory {
                csv.one(t, "peak_memory", "B", peak as f64);
            }
            csv.line(t, "ceiling_weights", "B/s", ceilings.weights.bytes_per_second);
            if let Some(memory) = &ceilings.memory {
                csv.line(t, "ceiling_memory", "B/s", memory.bytes_per_second);
            }
            csv.one(t, "ceiling_gemv_in_cache", "MAC/s", ceilings.gemv.macs_per_second);
            csv.one(t, "ceiling_gemm_in_cache", "MAC/s", ceilings.gemm.macs_per_second);
            for (name, speed) in [("prefill", speeds.prefill.median), ("decode", speeds.decode.median)] {
                if let Some(cost) = self.cost(speed) {
                    csv.one(t, &format!("{name}_cost"), "1/Mtoken", cost);
                }
                if let Some(energy) = self.energy(speed) {
                    csv.one(t, &format!("{name}_energy"), "kWh/Mtoken", energy);
                }
            }
            let Some(profiles) = &speeds.profiles else { continue };
            for (name, profiled) in [("prefill", &profiles.prefill), ("decode", &profiles.decode)] {
                for part in Part::ALL {
                    let seconds = profiled.seconds_per_token(part);
                    csv.one(t, &format!("profile_{name}_{}", part.name()), "s/token", seconds);
                }
                if let Some(density) = profiled.profile.positive_gates() {
                    csv.one(t, &format!("profile_{name}_positive_gates"), "1", density);
                }
            }
        }
        csv.text
    }
}

struct Csv {
    text: String,
    model: String,
}

impl Csv {
    fn line(&mut self, threads: &str, figure: &str, unit: &str, Spread { median, min, max }: Spread) {
        let model = &self.model;
        self.text.push_str(&format!("{model},{threads},{figure},{unit},{median},{min},{max}\n"));
    }

    fn one(&mut self, threads: &str, figure: &str, unit: &str, value: f64) {
        self.line(threads, figure, unit, Spread::of(vec![value]));
    }
}

/// As RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

impl Profiled {
    pub fn seconds_per_token(&self, part: Part) -> f64 {
        self.profile.seconds(part) / self.tokens as f64
    }

    /// Seconds for a token that belong to no part.
    pub fn outside(&self) -> f64 {
        (self.seconds - self.profile.total_seconds()).max(0.0) / self.tokens as f64
    }
}

fn bandwidth_json(bandwidth: &Bandwidth) -> Value {
    json!({"buffer_bytes": bandwidth.buffer_bytes, "bytes_per_second": bandwidth.bytes_per_second.to_json()})
}

fn kernel_json(rate: &KernelRate) -> Value {
    json!({
        "kernel": rate.kernel,
        "macs_per_second": rate.macs_per_second,
        "weight_bytes_per_second": rate.weight_bytes_per_second,
    })
}

fn profiled_json(profiled: &Profiled) -> Value {
    let mut parts = Map::new();
    for part in Part::ALL {
        parts.insert(part.name().to_owned(), json!(profiled.seconds_per_token(part)));
    }
    parts.insert("outside".to_owned(), json!(profiled.outside()));
    json!({"seconds_per_token": parts, "positive_gates": profiled.profile.positive_gates()})
}

/// What the processor calls itself, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == "model name"))?;
    Some(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_commas_stay_one_field() {
        assert_eq!(quoted("m.gguf"), "m.gguf");
        assert_eq!(quoted("a,\"b\".gguf"), "\"a,\"\"b\"\".gguf\"");
    }
}
