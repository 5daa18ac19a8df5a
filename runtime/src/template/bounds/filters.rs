//! Filters and tests: those that chat templates use, and what they pay for.

use minijinja::machinery::ast::{self, CallArg, Expr, Spanned};

use super::{Bounds, Engine, refused, through};
use crate::template::size::{COLLECT, DATA, SETTLE, SMALL_ONLY, WEIGH, WEIGH_TO_SORT};

/// Tests that look at the kind of a value, or at a number.
const QUICK_TESTS: [&str; 18] = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "mapping",
    "sequence",
    "iterable",
    "true",
    "false",
    "odd",
    "even",
    "divisibleby",
    "sameas",
];
/// Tests that compare.
const COMPARISONS: [&str; 12] =
    ["eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge", "in", "==", "!="];
/// Tests that read text.
const TEXT_TESTS: [&str; 4] = ["startingwith", "endingwith", "lower", "upper"];
/// Filters that `map` may apply: the result is as large as the item.
const MAPPED: [&str; 15] = [
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "string",
    "tojson",
    "length",
    "count",
    "first",
    "last",
    "int",
    "float",
    "list",
    "abs",
];

/// How arguments are treated.
#[derive(Clone, Copy)]
pub(super) enum Arguments {
    Free,
    Weighed,
    Small,
    /// The first so many are names, the others are weighed.
    NamesThenWeighed(usize),
    /// The first so many are weighed, the others are names.
    WeighedThenNames(usize),
}

impl Bounds {
    pub(super) fn arguments<'a>(&mut self, args: &[CallArg<'a>], how: Arguments) -> Engine<Vec<CallArg<'a>>> {
        let one = |(index, arg): (usize, &CallArg<'a>)| {
            let filter = match (how, arg) {
                (Arguments::Free, _) => None,
                (_, CallArg::Kwarg("attribute", _)) | (Arguments::Small, _) => Some(SMALL_ONLY),
                (Arguments::NamesThenWeighed(names), _) if index < names => Some(SMALL_ONLY),
                (Arguments::WeighedThenNames(others), _) if index >= others => Some(SMALL_ONLY),
                _ => Some(WEIGH),
            };
            let mut treated = |expr: &Expr<'a>| match filter {
                None => self.expr(expr),
                // Constants are checked too: they may be long.
                Some(SMALL_ONLY) => Ok(through(SMALL_ONLY, self.expr(expr)?)),
                Some(filter) => self.expr_through(filter, expr),
            };
            Ok(match arg {
                CallArg::Pos(expr) => CallArg::Pos(treated(expr)?),
                CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, treated(expr)?),
                CallArg::PosSplat(expr) | CallArg::KwargSplat(expr) => {
                    CallArg::Pos(refused("arguments cannot be spread with *", expr.span()))
                }
            })
        };
        args.iter().enumerate().map(one).collect()
    }

    pub(super) fn filter<'a>(&mut self, old: &Spanned<ast::Filter<'a>>) -> Engine<Expr<'a>> {
        let (before, how, after) =
            match old.name {
                "length" | "count" | "first" | "last" | "default" | "d" | "bool" | "int" | "float" | "abs"
                | "round" => (None, Arguments::Free, None),
                "list" | "reverse" => (None, Arguments::Free, Some(COLLECT)),
                "items" => (Some(DATA), Arguments::Free, Some(COLLECT)),
                "sort" | "dictsort" | "unique" => (Some(WEIGH_TO_SORT), Arguments::Small, Some(COLLECT)),
                "select" | "reject" if applies(old, 0, &[&QUICK_TESTS, &COMPARISONS]) => {
                    (Some(WEIGH), Arguments::Weighed, Some(COLLECT))
                }
                "selectattr" | "rejectattr" if applies(old, 1, &[&QUICK_TESTS, &COMPARISONS]) => {
                    (Some(WEIGH), Arguments::NamesThenWeighed(1), Some(COLLECT))
                }
                // A filter that is applied takes no arguments here.
                "map"
                    if applies(old, 0, &[&MAPPED])
                        && (old.args.len() == 1 || !matches!(old.args.first(), Some(CallArg::Pos(_)))) =>
                {
                    (Some(WEIGH), Arguments::Weighed, Some(SETTLE))
                }
                "trim" | "tojson" => (Some(WEIGH), Arguments::Small, None),
                "join" => (Some(WEIGH), Arguments::WeighedThenNames(1), None),
                "upper" | "lower" | "title" | "capitalize" | "replace" | "string" | "safe" | "escape" | "e"
                | "indent" => (Some(WEIGH), Arguments::Weighed, None),
                name => {
                    let what = format!("the filter {name}, or what it applies, is not one of those for chat templates");
                    return Ok(refused(&what, old.span()));
                }
            };
        let expr = match (&old.expr, before) {
            (Some(expr), Some(filter)) => Some(self.expr_through(filter, expr)?),
            (expr, _) => self.optional(expr.as_ref())?,
        };
        let new = ast::Filter { name: old.name, expr, args: self.arguments(&old.args, how)? };
        let new = Expr::Filter(Spanned::new(new, old.span()));
        Ok(after.into_iter().fold(new, |new, filter| through(filter, new)))
    }

    pub(super) fn test<'a>(&mut self, old: &Spanned<ast::Test<'a>>) -> Engine<Expr<'a>> {
        let (expr, how) = if QUICK_TESTS.contains(&old.name) {
            (self.expr(&old.expr)?, Arguments::Free)
        } else if COMPARISONS.contains(&old.name) || TEXT_TESTS.contains(&old.name) {
            (self.expr_through(WEIGH, &old.expr)?, Arguments::Weighed)
        } else {
            let what = format!("the test {} is not one of those for chat templates", old.name);
            return Ok(refused(&what, old.span()));
        };
        let new = ast::Test { name: old.name, expr, args: self.arguments(&old.args, how)? };
        Ok(Expr::Test(Spanned::new(new, old.span())))
    }
}

/// Whether the argument of a filter at `index`, the name of what it applies to items, is in the lists, or is not there.
fn applies(filter: &ast::Filter<'_>, index: usize, names: &[&[&str]]) -> bool {
    match filter.args.get(index) {
        Some(CallArg::Pos(Expr::Const(constant))) => {
            constant.value.as_str().is_some_and(|name| names.iter().any(|list| list.contains(&name)))
        }
        Some(CallArg::Pos(_)) => false,
        _ => true,
    }
}
