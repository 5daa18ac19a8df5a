//! Objects and lists as rules.

use llguidance::derivre::RegexAst;
use serde_json::Value;
use std::collections::HashSet;

use super::super::Refused;
use super::super::rules::{Lexeme, RegexKind, Symbol};
use super::keywords::Place;
use super::text::quoted;
use super::{MAX_COUNT, MAX_PROPERTIES, Part, Schemas};

impl<'a> Schemas<'a, '_> {
    pub(super) fn array(&mut self, parts: &[Part<'a>]) -> Result<Vec<Symbol>, Refused> {
        let all = || parts.iter().map(|part| &part.keywords);
        let min = all().map(|keywords| keywords.min_items).max().unwrap_or(0).min(MAX_COUNT) as u32;
        let max = all().filter_map(|keywords| keywords.max_items).min();
        let mut max = max.filter(|&max| max <= MAX_COUNT).map_or(u32::MAX, |max| max as u32);
        let prefix = all().map(|keywords| keywords.prefix.len()).max().unwrap_or(0);
        let (open, close) = (self.rules.literal("[", false), self.rules.literal("]", false));
        let comma = self.rules.literal(",", true);
        let mut items = Vec::new();
        for i in 0..prefix {
            items.push(self.item(parts, i)?);
        }
        // Only what the schema says something about follows the first items.
        let rest_is_open = prefix == 0 || all().any(|keywords| keywords.items.is_some());
        let rest = if rest_is_open { Some(self.item(parts, prefix)?) } else { None };
        if rest.is_none() {
            max = max.min(prefix as u32);
        }
        if min > max {
            return Ok(vec![self.never()?]);
        }
        let mut end = match rest {
            Some(item) if max > prefix as u32 => {
                let after = prefix as u32;
                let left = if max == u32::MAX { max } else { max - after };
                let min = min.saturating_sub(after);
                if prefix == 0 {
                    let more = left.saturating_sub(if left == u32::MAX { 0 } else { 1 });
                    let more = self.rules.repeat(vec![comma, item], min.saturating_sub(1), more)?;
                    let some = vec![item, more];
                    self.rules.rule(if min == 0 { vec![vec![], some] } else { vec![some] })?
                } else {
                    self.rules.repeat(vec![comma, item], min, left)?
                }
            }
            _ => self.nothing()?,
        };
        for (i, &item) in items.iter().enumerate().take(max as usize).rev() {
            let some = if i == 0 { vec![item, end] } else { vec![comma, item, end] };
            end = self.rules.rule(if (i as u32) < min { vec![some] } else { vec![vec![], some] })?;
        }
        Ok(vec![open, end, close])
    }

    /// Item `i`, which is at most one after the first items.
    fn item(&mut self, parts: &[Part<'a>], i: usize) -> Result<Symbol, Refused> {
        let mut places = Vec::new();
        for Part { keywords, .. } in parts {
            match (keywords.prefix.get(i), keywords.items) {
                (Some(schema), _) => places.push(keywords.place.below(schema, format_args!("prefixItems/{i}"))),
                (None, Some(schema)) => places.push(keywords.place.below(schema, "items")),
                (None, None) => {}
            }
        }
        self.symbol_of(places)
    }

    pub(super) fn object(&mut self, parts: &[Part<'a>]) -> Result<Vec<Symbol>, Refused> {
        let all = || parts.iter().map(|part| &part.keywords);
        let mut names: Vec<&str> = Vec::new();
        let mut required: HashSet<&str> = HashSet::new();
        let mut named: HashSet<&str> = HashSet::new();
        for keywords in all() {
            let own = keywords.properties.iter().flat_map(|properties| properties.keys().map(String::as_str));
            names.extend(own.filter(|&name| named.insert(name)));
        }
        for keywords in all() {
            for &name in &keywords.required {
                required.insert(name);
                if named.insert(name) {
                    names.push(name);
                }
            }
        }
        if names.len() > MAX_PROPERTIES {
            let at = &parts[0].keywords.place.at;
            return Err(Refused::new(format!(
                "the schema cannot be used: an object has {} properties, more than {MAX_PROPERTIES}, at {at}",
                names.len()
            )));
        }
        let additional = if others_are_written(parts) { Some(self.property(parts, None)?) } else { None };
        let count = |count: u64| count.min(MAX_COUNT) as u32;
        let min = count(all().map(|keywords| keywords.min_properties).max().unwrap_or(0));
        let max = all().filter_map(|keywords| keywords.max_properties).min().map_or(u32::MAX, count);
        let (needed, possible) = (required.len() as u32, names.len() as u32);
        let others = additional.is_some();
        // One property more than those that are needed is another one. Of two more the second may be the first again.
        let one_more = min == needed + 1 && (needed == possible || needed == 0);
        let unclear = if min > needed && !one_more {
            Some(("minProperties", "needs more properties than `required` names"))
        } else if needed < possible && (max < possible || (others && max != u32::MAX)) {
            Some(("maxProperties", "beside optional properties is not supported"))
        } else {
            None
        };
        if let Some((keyword, why)) = unclear {
            let at = &parts[0].keywords.place.at;
            return Err(Refused::new(format!("the schema cannot be used: `{keyword}` {why}, at {at}")));
        }
        let (open, close) = (self.rules.literal("{", false), self.rules.literal("}", false));
        if needed > max {
            return Ok(vec![self.never()?]);
        }
        let others = match additional {
            Some(value) if max > needed => {
                let left = if max == u32::MAX { max } else { max - needed };
                Some((self.other_key(&names), value, left))
            }
            _ => None,
        };
        let mut members = Vec::new();
        for &name in &names {
            let key = self.rules.literal(&format!("{}:", Value::from(name)), true);
            members.push((key, self.property(parts, Some(name))?, required.contains(name)));
        }
        let members = self.members(&members, others, min > needed)?;
        Ok(vec![open, members, close])
    }

    /// Named members in order, and then others: key, value, and how many. `one_more`: there is one more than those that
    /// are required, and these are all that are named, or none.
    fn members(
        &mut self,
        named: &[(Symbol, Symbol, bool)],
        others: Option<(Symbol, Symbol, u32)>,
        one_more: bool,
    ) -> Result<Symbol, Refused> {
        let comma = self.rules.literal(",", true);
        let any_required = named.iter().any(|(.., required)| *required);
        // What may come at the end where there is no member yet, and where there is one.
        let (least_first, least_later) = (u32::from(one_more), u32::from(one_more && any_required));
        let (mut first, mut later) = match others {
            None => (
                if least_first == 0 { self.nothing()? } else { self.never()? },
                if least_later == 0 { self.nothing()? } else { self.never()? },
            ),
            Some((key, value, max)) => {
                let colon = self.rules.literal(":", true);
                let later = self.rules.repeat(vec![comma, key, colon, value], least_later, max)?;
                let more = if max == u32::MAX { max } else { max - 1 };
                let more = self.rules.repeat(vec![comma, key, colon, value], 0, more)?;
                let mut alternatives = if least_first == 0 { vec![vec![]] } else { vec![] };
                alternatives.push(vec![key, colon, value, more]);
                (self.rules.rule(alternatives)?, later)
            }
        };
        // `first`: what may come where there is no member yet; `later`: where there is one.
        for &(key, value, required) in named.iter().rev() {
            let (mut as_first, mut as_later) = (vec![vec![key, value, later]], vec![vec![comma, key, value, later]]);
            if !required {
                as_first.push(vec![first]);
                as_later.push(vec![later]);
            }
            first = self.rules.rule(as_first)?;
            later = self.rules.rule(as_later)?;
        }
        Ok(first)
    }

    /// The value of a property, or of those that no part names.
    fn property(&mut self, parts: &[Part<'a>], name: Option<&str>) -> Result<Symbol, Refused> {
        let places = property_places(parts, name);
        self.symbol_of(places)
    }

    /// The key of a property that is not among `names`.
    fn other_key(&mut self, names: &[&str]) -> Symbol {
        self.rules.lexeme(format!("key but {names:?}"), || {
            let taken = names.iter().map(|&name| RegexAst::Literal(name.into())).collect();
            let free = RegexAst::Not(Box::new(RegexAst::Or(taken)));
            let regex = quoted(RegexAst::And(vec![RegexAst::Regex("(?s:.*)".into()), free]));
            Lexeme::Regex { regex, kind: RegexKind::Quoted }
        })
    }
}

/// Whether properties are written that no part names.
pub(super) fn others_are_written(parts: &[Part]) -> bool {
    let all = || parts.iter().map(|part| &part.keywords);
    let allowed = all().all(|keywords| keywords.additional != Some(&Value::Bool(false)));
    allowed
        && (all().all(|keywords| keywords.properties.is_none()) || all().any(|keywords| keywords.additional.is_some()))
}

/// The schemas for a property, or for those that no part names.
pub(super) fn property_places<'a>(parts: &[Part<'a>], name: Option<&str>) -> Vec<Place<'a>> {
    let mut places = Vec::new();
    for Part { keywords, .. } in parts {
        let own = name.and_then(|name| keywords.properties?.get(name).map(|schema| (name, schema)));
        match (own, keywords.additional) {
            (Some((name, schema)), _) => places.push(keywords.place.below(schema, format_args!("properties/{name}"))),
            (None, Some(schema)) => places.push(keywords.place.below(schema, "additionalProperties")),
            (None, None) => {}
        }
    }
    places
}
