//! What is asked for, as rules.

use llguidance::derivre::RegexAst;

use super::rules::{Lexeme, RegexKind, Rules, Symbol};
use super::schema::{Schemas, an_object, no_arguments};
use super::tools::{CLOSE, OPEN, ToolChoice, Tools};
use super::{Format, Refused};

/// Calls in one answer.
const MAX_CALLS: u32 = 32;

/// The rules of a form; nothing for text without tools.
///
/// # Errors
/// As [`Grammars::compile`](super::Grammars::compile).
pub(super) fn rules(format: Format<'_>, tools: Option<&Tools>) -> Result<Option<Rules>, Refused> {
    let mut rules = Rules::default();
    let form = rules.reserve()?;
    let mut schemas = Schemas::new(&mut rules);
    let schema = match format {
        Format::Text => None,
        Format::JsonObject => Some(an_object()),
        Format::JsonSchema(schema) => Some(schema),
    };
    let json = schema.map(|schema| schemas.symbol(&[schema], "")).transpose()?;
    let mut arguments = Vec::new();
    for (i, tool) in tools.iter().flat_map(|tools| tools.tools.iter()).enumerate() {
        let schema = tool.parameters.as_ref().unwrap_or(no_arguments());
        arguments.push(schemas.symbol(&[an_object(), schema], &format!("tools[{i}].parameters"))?);
    }
    schemas.finish()?;
    let mut alternatives: Vec<Vec<Symbol>> = Vec::new();
    match tools {
        None => alternatives.extend(json.map(|json| vec![json])),
        Some(tools) => {
            let calls = calls(&mut rules, tools, &arguments)?;
            match (&tools.choice, json) {
                (ToolChoice::Auto, Some(json)) => alternatives.push(vec![json]),
                (ToolChoice::Auto, None) => {
                    let (only, before) = (text_only(&mut rules), text_and_tag(&mut rules));
                    alternatives.push(vec![only]);
                    alternatives.push([vec![before], calls.clone()].concat());
                }
                _ => {}
            }
            if tools.choice != ToolChoice::Auto || json.is_some() {
                let tag = rules.literal(OPEN, false);
                alternatives.push([vec![tag], calls].concat());
            }
        }
    }
    if alternatives.is_empty() {
        return Ok(None);
    }
    rules.rules[form] = alternatives;
    rules.needed.push((Symbol::Rule(form), "#".into()));
    Ok(Some(rules))
}

/// Calls, after the tag of the first.
fn calls(rules: &mut Rules, tools: &Tools, arguments: &[Symbol]) -> Result<Vec<Symbol>, Refused> {
    let mut alternatives = Vec::new();
    for (tool, &arguments) in tools.tools.iter().zip(arguments) {
        if matches!(&tools.choice, ToolChoice::Named(name) if *name != tool.name) {
            continue;
        }
        // Models are trained on slightly different spacing.
        let begin = format!("\n?\\{{\"name\": ?\"{}\", ?\"arguments\": ?", tool.name);
        let begin = regex(rules, &begin);
        let end = regex(rules, &format!("\\}}\n?{CLOSE}"));
        alternatives.push(vec![begin, arguments, end]);
    }
    let call = rules.rule(alternatives)?;
    let mut calls = vec![call];
    if tools.parallel && !matches!(tools.choice, ToolChoice::Named(_)) {
        let tag = regex(rules, &format!("\n?{OPEN}"));
        calls.push(rules.repeat(vec![tag, call], 0, MAX_CALLS - 1)?);
    }
    Ok(calls)
}

fn regex(rules: &mut Rules, regex: &str) -> Symbol {
    rules.lexeme(format!("regex {regex}"), || {
        let regex = RegexAst::Regex(regex.into());
        Lexeme::Regex { regex, kind: RegexKind::Other }
    })
}

/// Text without a call.
fn text_only(rules: &mut Rules) -> Symbol {
    let with_call = RegexAst::Regex(format!("(?s:.*){OPEN}(?s:.*)"));
    text(rules, "text", RegexAst::Not(Box::new(with_call)))
}

/// Text up to the first call, with its tag.
fn text_and_tag(rules: &mut Rules) -> Symbol {
    let later = RegexAst::Not(Box::new(RegexAst::Regex(format!("(?s:.*){OPEN}(?s:.+)"))));
    text(rules, "text and tag", RegexAst::And(vec![RegexAst::Regex(format!("(?s:.*){OPEN}")), later]))
}

fn text(rules: &mut Rules, name: &str, regex: RegexAst) -> Symbol {
    rules.lexeme(name.into(), || {
        let regex = RegexAst::And(vec![RegexAst::Regex("(?s:.*)".into()), regex]);
        Lexeme::Regex { regex, kind: RegexKind::Text }
    })
}
