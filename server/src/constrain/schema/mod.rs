//! JSON schemas as rules.
//!
//! What the rules allow is valid under the schema; not all that is valid is allowed:
//!
//! - there is no white space but single spaces after commas and colons;
//! - properties come in the order in which the schema names them;
//! - properties that the schema does not name are written only where it has no `properties` or says
//!   `additionalProperties` itself, and so with items after `prefixItems`;
//! - a schema without `type` that has keywords for some types allows only those;
//! - numbers and formats are written in one plain way (see `number`, `text`).
//!
//! A keyword that restricts values and is not supported is refused by name. A schema is seen as a set of parts that must
//! all hold: a schema object, what it refers to, and what is in its `allOf`. A set becomes one rule, so that recursion
//! through `$ref` ends; `anyOf` and `oneOf` become alternatives, each the set with one member more. For `oneOf` the members
//! must be known to exclude each other (`exclusive`).

mod containers;
mod exclusive;
mod keywords;
mod number;
mod text;

use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::LazyLock;

use super::Refused;
use super::rules::{Lexeme, RegexKind, Rules, Symbol};
use keywords::{ARRAY, BOOLEAN, FRACTION, INTEGER, Keywords, NULL, OBJECT, Place, STRING};
use number::Numbers;
use text::Texts;
pub(super) use text::{in_string, of_length, quoted};

/// A schema with more values and texts than these is refused.
const MAX_VALUES: usize = 20_000;
const MAX_BYTES: usize = 256 << 10;
/// A parser of JSON that is not told otherwise goes no deeper.
const MAX_DEPTH: usize = 128;
const MAX_PATTERN: usize = 1_000;
/// The work for texts that several expressions match grows with the product of their sizes.
const MAX_EXPRESSIONS: usize = 2;
/// Properties of one object: the parser considers all that are optional at once.
const MAX_PROPERTIES: usize = 1_000;
/// Members of one `anyOf` or `oneOf`. An answer may begin like all of them, and all are followed until it differs.
const MAX_MEMBERS: usize = 256;
/// Parts that must hold at once.
const MAX_PARTS: usize = 200;
/// Comparisons of values with schemas, and of schemas with each other.
const MAX_WORK: usize = 500_000;
/// Counts above this are as good as none: an answer has no room for them.
const MAX_COUNT: u64 = 1 << 20;

static AN_OBJECT: LazyLock<Value> = LazyLock::new(|| serde_json::json!({"type": "object"}));
static NO_ARGUMENTS: LazyLock<Value> =
    LazyLock::new(|| serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false}));

/// The schema of any object.
pub(super) fn an_object() -> &'static Value {
    &AN_OBJECT
}

/// The schema of the empty object.
pub(super) fn no_arguments() -> &'static Value {
    &NO_ARGUMENTS
}

/// One of the schema objects that must hold.
#[derive(Clone, Debug)]
struct Part<'a> {
    keywords: Rc<Keywords<'a>>,
    /// Whether its `anyOf` is still to be decided.
    any_of: bool,
    /// Whether its `oneOf` is.
    one_of: bool,
}

impl Part<'_> {
    fn matters(&self) -> bool {
        self.any_of || self.one_of || self.keywords.says_something()
    }

    fn key(&self) -> (usize, bool, bool) {
        (std::ptr::from_ref(self.keywords.place.schema) as usize, self.any_of, self.one_of)
    }
}

/// Makes rules of schemas.
pub(super) struct Schemas<'a, 'r> {
    rules: &'r mut Rules,
    /// The keywords of schema objects, by address.
    read: HashMap<usize, Rc<Keywords<'a>>>,
    /// The rule of each set of parts.
    known: HashMap<Vec<(usize, bool, bool)>, usize>,
    /// Rules without alternatives yet.
    open: Vec<(usize, Vec<Part<'a>>)>,
    any: Option<Symbol>,
    /// The rules of nothing at all, and of what cannot be.
    nothing: Option<Symbol>,
    never: Option<Symbol>,
    /// What is left of [`MAX_WORK`].
    work: usize,
}

impl<'a, 'r> Schemas<'a, 'r> {
    pub(super) fn new(rules: &'r mut Rules) -> Self {
        Self {
            rules,
            read: HashMap::new(),
            known: HashMap::new(),
            open: Vec::new(),
            any: None,
            nothing: None,
            never: None,
            work: MAX_WORK,
        }
    }

    /// Pays for comparing schemas and values.
    fn pay(&mut self, work: usize, at: &str) -> Result<(), Refused> {
        self.work = self.work.checked_sub(work).ok_or_else(|| {
            Refused::new(format!("the schema cannot be used: `oneOf` or `enum` takes too long to check, at {at}"))
        })?;
        Ok(())
    }

    /// The symbol for values that are valid under all of these schemas, which errors call `at`. Its rules are there after
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// A schema that is too large, or wrong.
    pub(super) fn symbol(&mut self, schemas: &[&'a Value], at: &str) -> Result<Symbol, Refused> {
        let places = schemas.iter().map(|&schema| Place { schema, document: schema, at: format!("{at}#").into() });
        let places: Vec<Place> = places.collect();
        for place in &places {
            check_size(place)?;
        }
        let symbol = self.symbol_of(places)?;
        self.rules.needed.push((symbol, format!("{at}#")));
        Ok(symbol)
    }

    /// Makes the rules.
    ///
    /// # Errors
    /// What is not supported, and rules without end.
    pub(super) fn finish(mut self) -> Result<(), Refused> {
        while let Some((rule, parts)) = self.open.pop() {
            self.rules.rules[rule] = self.alternatives(&parts)?;
        }
        Ok(())
    }

    fn symbol_of(&mut self, places: Vec<Place<'a>>) -> Result<Symbol, Refused> {
        match self.expand(places)? {
            Some(parts) => self.symbol_of_parts(parts),
            None => self.never(),
        }
    }

    fn symbol_of_parts(&mut self, mut parts: Vec<Part<'a>>) -> Result<Symbol, Refused> {
        parts.retain(Part::matters);
        if parts.is_empty() {
            return self.any();
        }
        let mut key: Vec<_> = parts.iter().map(Part::key).collect();
        key.sort_unstable();
        key.dedup();
        if let Some(&rule) = self.known.get(&key) {
            return Ok(Symbol::Rule(rule));
        }
        let mut seen = HashSet::new();
        parts.retain(|part| seen.insert(part.key()));
        if parts.len() > MAX_PARTS {
            let at = &parts[0].keywords.place.at;
            return Err(Refused::new(format!("the schema cannot be used: too much must hold at once, at {at}")));
        }
        let rule = self.rules.reserve()?;
        self.known.insert(key, rule);
        self.open.push((rule, parts));
        Ok(Symbol::Rule(rule))
    }

    fn keywords(&mut self, place: Place<'a>) -> Result<Rc<Keywords<'a>>, Refused> {
        let address = std::ptr::from_ref(place.schema) as usize;
        if let Some(keywords) = self.read.get(&address) {
            return Ok(Rc::clone(keywords));
        }
        let keywords = Rc::new(Keywords::read(place)?);
        self.read.insert(address, Rc::clone(&keywords));
        Ok(keywords)
    }

    /// All parts that must hold where these schemas do; nothing if one of them is `false`.
    fn expand(&mut self, places: Vec<Place<'a>>) -> Result<Option<Vec<Part<'a>>>, Refused> {
        let mut parts = Vec::new();
        let mut seen = HashSet::new();
        let mut open: Vec<Place> = places;
        open.reverse();
        while let Some(place) = open.pop() {
            match place.schema {
                Value::Bool(true) => continue,
                Value::Bool(false) => return Ok(None),
                _ => {}
            }
            if !seen.insert(std::ptr::from_ref(place.schema)) {
                continue;
            }
            let keywords = self.keywords(place)?;
            let place = &keywords.place;
            for (i, schema) in keywords.all_of.iter().enumerate().rev() {
                open.push(place.below(schema, format_args!("allOf/{i}")));
            }
            if let Some(reference) = keywords.reference {
                open.push(referred(place, reference)?);
            }
            let (any_of, one_of) = (keywords.any_of.is_some(), keywords.one_of.is_some());
            parts.push(Part { any_of, one_of, keywords });
        }
        Ok(Some(parts))
    }

    fn alternatives(&mut self, parts: &[Part<'a>]) -> Result<Vec<Vec<Symbol>>, Refused> {
        let Some(choice) = parts.iter().position(|part| part.any_of || part.one_of) else {
            return self.plain(parts);
        };
        let mut alternatives = Vec::new();
        let mut seen = HashSet::new();
        for option in self.options(parts, choice)?.into_iter().flatten() {
            let symbol = self.symbol_of_parts(option)?;
            if seen.insert(symbol) {
                alternatives.push(vec![symbol]);
            }
        }
        if !parts[choice].any_of {
            self.check_exclusive(parts, choice)?;
        }
        Ok(alternatives)
    }

    /// The sets of parts that the choice of one of them leads to; nothing for members that are `false`.
    fn options(&mut self, parts: &[Part<'a>], choice: usize) -> Result<Vec<Option<Vec<Part<'a>>>>, Refused> {
        let keywords = Rc::clone(&parts[choice].keywords);
        let any_of = parts[choice].any_of;
        let (name, members) = if any_of { ("anyOf", keywords.any_of) } else { ("oneOf", keywords.one_of) };
        let mut rest = parts.to_vec();
        if any_of {
            rest[choice].any_of = false;
        } else {
            rest[choice].one_of = false;
        }
        let members = members.unwrap_or_default();
        if members.len() > MAX_MEMBERS {
            let (count, at) = (members.len(), &keywords.place.at);
            return Err(Refused::new(format!(
                "the schema cannot be used: `{name}` has {count} members, more than {MAX_MEMBERS}, at {at}"
            )));
        }
        let mut options = Vec::new();
        for (i, member) in members.iter().enumerate() {
            let place = keywords.place.below(member, format_args!("{name}/{i}"));
            let added = self.expand(vec![place])?;
            options.push(added.map(|added| rest.iter().cloned().chain(added).collect()));
        }
        Ok(options)
    }

    /// The alternatives of parts without `anyOf` and `oneOf`.
    fn plain(&mut self, parts: &[Part<'a>]) -> Result<Vec<Vec<Symbol>>, Refused> {
        if let Some(values) = self.listed(parts)? {
            let mut seen = HashSet::new();
            let mut texts: Vec<String> = values.into_iter().map(Value::to_string).collect();
            texts.retain(|text| seen.insert(text.clone()));
            return Ok(if texts.is_empty() { vec![] } else { vec![vec![self.rules.literals(texts, false)]] });
        }
        let types = written_types(parts);
        let mut alternatives = Vec::new();
        let mut words = Vec::new();
        if types & NULL != 0 {
            words.push("null".to_owned());
        }
        if types & BOOLEAN != 0 {
            words.extend(["true".to_owned(), "false".to_owned()]);
        }
        if !words.is_empty() {
            alternatives.push(vec![self.rules.literals(words, false)]);
        }
        if types & INTEGER != 0 {
            alternatives.push(vec![self.number(parts, types & FRACTION == 0)]);
        }
        if types & STRING != 0 {
            alternatives.push(vec![self.text(parts)?]);
        }
        if types & ARRAY != 0 {
            alternatives.push(self.array(parts)?);
        }
        if types & OBJECT != 0 {
            alternatives.push(self.object(parts)?);
        }
        Ok(alternatives)
    }

    /// The values of `enum` and `const` that all parts allow, if there is such a keyword.
    fn listed(&mut self, parts: &[Part<'a>]) -> Result<Option<Vec<&'a Value>>, Refused> {
        let Some(first) = parts.iter().find(|part| part.keywords.values.is_some()) else {
            return Ok(None);
        };
        let mut values: Vec<&Value> = Vec::new();
        for &value in first.keywords.values.iter().flatten() {
            for Part { keywords, .. } in parts {
                let patterns = usize::from(keywords.pattern.is_some() || keywords.format.is_some());
                let others = keywords.values.as_ref().map_or(0, Vec::len);
                let others = if std::ptr::eq(&**keywords, &*first.keywords) { 0 } else { others };
                self.pay(1 + 100 * patterns + others / 16, &keywords.place.at)?;
            }
            let others = |part: &Part| std::ptr::eq(&*part.keywords, &*first.keywords) || part.keywords.lists(value);
            if parts.iter().all(|part| others(part) && exclusive::holds(&part.keywords, value)) {
                values.push(value);
            }
        }
        Ok(Some(values))
    }

    fn number(&mut self, parts: &[Part<'a>], integer: bool) -> Symbol {
        let mut numbers = Numbers { integer, ..Numbers::default() };
        for part in parts {
            numbers.narrow(&part.keywords.lower, &part.keywords.upper, part.keywords.divisor);
        }
        self.rules.lexeme(format!("{numbers:?}"), || Lexeme::Regex { regex: numbers.regex(), kind: RegexKind::Other })
    }

    fn text(&mut self, parts: &[Part<'a>]) -> Result<Symbol, Refused> {
        let mut texts = Texts::default();
        for part in parts {
            let keywords = &part.keywords;
            texts.min_length = texts.min_length.max(keywords.min_length);
            texts.max_length = [texts.max_length, keywords.max_length].into_iter().flatten().min();
            texts.formats.extend(keywords.format.filter(|format| !texts.formats.contains(format)));
            let at = &keywords.place.at;
            if let Some(pattern) = keywords.pattern.filter(|pattern| !texts.patterns.contains(pattern)) {
                if pattern.len() > MAX_PATTERN {
                    return Err(Refused::new(format!(
                        "the schema cannot be used: `pattern` has more than {MAX_PATTERN} bytes, at {at}"
                    )));
                }
                text::check_pattern(pattern).map_err(|why| {
                    Refused::new(format!("the schema cannot be used: `pattern` is not supported ({why}), at {at}"))
                })?;
                texts.patterns.push(pattern);
            }
            if texts.patterns.len() + texts.formats.len() > MAX_EXPRESSIONS {
                return Err(Refused::new(format!(
                    "the schema cannot be used: more than {MAX_EXPRESSIONS} of `pattern` and `format` must hold at once, \
                     at {at}"
                )));
            }
        }
        if texts.max_length.is_some_and(|max| max < texts.min_length) {
            return self.never();
        }
        Ok(self.rules.lexeme(format!("{texts:?}"), || texts.lexeme()))
    }

    fn nothing(&mut self) -> Result<Symbol, Refused> {
        if self.nothing.is_none() {
            self.nothing = Some(self.rules.rule(vec![vec![]])?);
        }
        self.nothing.ok_or_else(|| Refused::internal("no rule"))
    }

    fn never(&mut self) -> Result<Symbol, Refused> {
        if self.never.is_none() {
            self.never = Some(self.rules.rule(vec![])?);
        }
        self.never.ok_or_else(|| Refused::internal("no rule"))
    }

    /// Any JSON.
    fn any(&mut self) -> Result<Symbol, Refused> {
        if let Some(any) = self.any {
            return Ok(any);
        }
        let rule = self.rules.reserve()?;
        let any = Symbol::Rule(rule);
        self.any = Some(any);
        let words = ["null", "true", "false"].map(str::to_owned);
        let mut alternatives =
            vec![vec![self.rules.literals(words.into(), false)], vec![self.number(&[], false)], vec![self.text(&[])?]];
        alternatives.push(self.array(&[])?);
        alternatives.push(self.object(&[])?);
        self.rules.rules[rule] = alternatives;
        Ok(any)
    }
}

/// The types that are written where all parts hold.
fn written_types(parts: &[Part]) -> keywords::Types {
    let all = parts.iter().fold(keywords::ALL, |types, part| types & part.keywords.types);
    let spoken_of = parts.iter().fold(0, |types, part| types | part.keywords.spoken_of);
    if parts.iter().any(|part| part.keywords.typed) || spoken_of == 0 { all } else { all & spoken_of }
}

/// What a `$ref` points to.
fn referred<'a>(place: &Place<'a>, reference: &str) -> Result<Place<'a>, Refused> {
    let shown: String = reference.chars().take(80).collect();
    let Some(pointer) = reference.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'))
    else {
        return Err(Refused::new(format!(
            "the schema cannot be used: `$ref` is \"{shown}\", at {}; only \"#\" and pointers \"#/...\" are supported",
            place.at
        )));
    };
    let schema = decoded(pointer).and_then(|pointer| place.document.pointer(&pointer)).ok_or_else(|| {
        Refused::new(format!("the schema cannot be used: `$ref` is \"{shown}\", which is nowhere, at {}", place.at))
    })?;
    let root = place.at.split('#').next().unwrap_or_default();
    Ok(Place { schema, document: place.document, at: format!("{root}{shown}").into() })
}

/// A fragment of a URI without its `%` escapes.
fn decoded(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Refuses what is too large or too deep, before anything recurses into it.
fn check_size(place: &Place) -> Result<(), Refused> {
    let (mut values, mut bytes) = (0, 0);
    let mut open = vec![(place.schema, 1)];
    while let Some((value, depth)) = open.pop() {
        values += 1;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => {
                bytes += members.keys().map(String::len).sum::<usize>();
                open.extend(members.values().map(|value| (value, depth + 1)));
            }
            _ => {}
        }
        let limit = if values > MAX_VALUES {
            format!("more than {MAX_VALUES} values")
        } else if bytes > MAX_BYTES {
            format!("more than {MAX_BYTES} bytes of text")
        } else if depth > MAX_DEPTH {
            format!("more than {MAX_DEPTH} values within each other")
        } else {
            continue;
        };
        return Err(Refused::new(format!("the schema cannot be used: it has {limit}, at {}", place.at)));
    }
    Ok(())
}
