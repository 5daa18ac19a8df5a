//! Strings: lengths, patterns and formats, as regular expressions over what a string says.

use llguidance::derivre::{JsonQuoteOptions, RegexAst, RegexBuilder};
use llguidance::regex_to_lark;

use super::super::rules::{Lexeme, RegexKind};

/// Longer strings are not written, whatever the schema allows.
const MAX_LENGTH: u64 = 1 << 24;
/// A larger lower bound is refused.
pub(super) const MAX_MIN_LENGTH: u64 = 2_000;
/// Work that telling whether one string fits may take, in nodes of expressions.
const MAX_WORK: u64 = 200_000;

/// The strings that are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Texts<'a> {
    pub(super) min_length: u64,
    pub(super) max_length: Option<u64>,
    /// All must be found.
    pub(super) patterns: Vec<&'a str>,
    /// All must match.
    pub(super) formats: Vec<&'static str>,
}

impl Texts<'_> {
    /// These strings with their quotes.
    pub(super) fn lexeme(&self) -> Lexeme {
        // Both limits fit.
        let (min, max) = (self.min_length as u32, self.max_length.map(|max| max.min(MAX_LENGTH) as u32));
        if self.patterns.is_empty() && self.formats.is_empty() {
            return Lexeme::Counted { min, max };
        }
        let mut parts = Vec::new();
        if min > 0 || max.is_some() {
            parts.push(of_length(min, max));
        }
        for pattern in &self.patterns {
            parts.push(RegexAst::SearchRegex(regex_to_lark(pattern, "dw")));
            parts.push(RegexAst::Regex(same_for_all(pattern).into()));
        }
        for format in &self.formats {
            // The names are known here.
            parts.push(RegexAst::Regex(format_regex(format).unwrap_or_default()));
        }
        Lexeme::Regex { regex: quoted(RegexAst::And(parts)), kind: RegexKind::Quoted }
    }
}

/// Any `min` to `max` characters.
pub(in super::super) fn of_length(min: u32, max: Option<u32>) -> RegexAst {
    let max = max.map_or(String::new(), |max| max.to_string());
    RegexAst::Regex(format!("(?s:.{{{min},{max}}})"))
}

/// The characters on which the dialects of regular expressions agree: they differ in what is white, in what a point
/// leaves out, and in which letters outside ASCII are word characters.
fn same_for_all(pattern: &str) -> &'static str {
    if pattern.contains("\\W") || pattern.contains("\\D") {
        "[ -~]*"
    } else {
        "[^\\x00-\\x1f\\x7f-\\x9f\\u{2028}\\u{2029}\\u{feff}]*"
    }
}

/// A JSON string that says what `content` matches.
pub(in super::super) fn quoted(content: RegexAst) -> RegexAst {
    RegexAst::JsonQuote(Box::new(content), JsonQuoteOptions::regular())
}

/// What `content` matches as it is written within a JSON string.
pub(in super::super) fn in_string(content: RegexAst) -> RegexAst {
    let options = JsonQuoteOptions { raw_mode: true, ..JsonQuoteOptions::regular() };
    RegexAst::JsonQuote(Box::new(content), options)
}

/// The expression of a format; nothing for one that is not supported.
pub(super) fn format_regex(name: &str) -> Option<String> {
    const DAY: &str = "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|\
                       02-(0[1-9]|1[0-9]|2[0-8]))\
                       |([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
    const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
    const LABELS: &str = "[A-Za-z0-9](-?[A-Za-z0-9]){0,30}(\\.[A-Za-z0-9](-?[A-Za-z0-9]){0,30}){0,3}";
    const BYTE: &str = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    const CHARACTER: &str = "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})";
    Some(match name {
        "date" => DAY.to_owned(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{DAY}T{TIME}"),
        "duration" => {
            let time = "T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S)";
            let day = "([0-9]{1,4}Y([0-9]{1,4}M([0-9]{1,4}D)?)?|[0-9]{1,4}M([0-9]{1,4}D)?|[0-9]{1,4}D)";
            format!("P({day}({time})?|{time}|[0-9]{{1,4}}W)")
        }
        "email" => format!("[A-Za-z0-9_+-]{{1,24}}(\\.[A-Za-z0-9_+-]{{1,12}}){{0,3}}@{LABELS}"),
        "hostname" => LABELS.to_owned(),
        "ipv4" => format!("({BYTE}\\.){{3}}{BYTE}"),
        "ipv6" => {
            let group = "[0-9a-f]{1,4}";
            let mut ways = vec![format!("({group}:){{7}}{group}"), "::".to_owned()];
            // `left` groups, two colons for at least one group of zeros, and groups up to eight.
            for left in 0..=7 {
                let before = if left == 0 { ":".to_owned() } else { format!("({group}:){{{left}}}") };
                match 7 - left {
                    0 => ways.push(format!("{before}:")),
                    right => ways.push(format!("{before}(:{group}){{1,{right}}}")),
                }
                if left > 0 && left < 7 {
                    ways.push(format!("{before}:"));
                }
            }
            ways.join("|")
        }
        "uuid" => "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}".to_owned(),
        "uri" => format!(
            "[a-z][a-z0-9+.-]{{0,15}}://{LABELS}(:[0-9]{{1,4}})?(/{CHARACTER}*)*(\\?({CHARACTER}|/)*)?(#({CHARACTER}|/)*)?"
        ),
        _ => return None,
    })
}

/// Whether a pattern can be read.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let built = RegexBuilder::new().mk(&RegexAst::SearchRegex(regex_to_lark(pattern, "dw")));
    // The error is the last line; before it the parser draws the pattern.
    built.map(drop).map_err(|error| {
        let error = error.to_string();
        error.lines().last().unwrap_or_default().trim_start_matches("error: ").chars().take(120).collect()
    })
}

/// Whether a string, which is part of a schema, has this pattern and format.
pub(super) fn fits(text: &str, pattern: Option<&str>, format: Option<&str>) -> bool {
    let pattern = pattern.map(|pattern| RegexAst::SearchRegex(regex_to_lark(pattern, "dw")));
    let format = format.and_then(format_regex).map(RegexAst::Regex);
    pattern.into_iter().chain(format).all(|regex| {
        let mut builder = RegexBuilder::new();
        let Ok(regex) = builder.mk(&regex) else { return false };
        builder.into_regex_limited(regex, MAX_WORK).is_ok_and(|mut regex| {
            let mut state = regex.initial_state();
            for &byte in text.as_bytes() {
                state = regex.transition(state, byte);
                if regex.cost() > MAX_WORK {
                    return false;
                }
            }
            regex.is_accepting(state)
        })
    })
}
