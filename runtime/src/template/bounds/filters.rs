//! Filters and tests: those that chat templates use, and what they pay for.

use minijinja::machinery::ast::{self, CallArg, Expr, Spanned};

use super::{Bounds, Engine, refuse, through};
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
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    return refuse("arguments cannot be spread with *".into());
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
                "select" | "reject" => {
                    one_of(old, 0, &[&QUICK_TESTS, &COMPARISONS])?;
                    (Some(WEIGH), Arguments::Weighed, Some(COLLECT))
                }
                "selectattr" | "rejectattr" => {
                    one_of(old, 1, &[&QUICK_TESTS, &COMPARISONS])?;
                    (Some(WEIGH), Arguments::NamesThenWeighed(1), Some(COLLECT))
                }
                "map" => {
                    one_of(old, 0, &[&MAPPED])?;
                    if old.args.iter().filter(|arg| matches!(arg, CallArg::Pos(_))).count() > 1 {
                        return refuse("map takes the name of a filter, without arguments for it".into());
                    }
                    (Some(WEIGH), Arguments::Weighed, Some(SETTLE))
                }
                "trim" | "tojson" => (Some(WEIGH), Arguments::Small, None),
                "join" => (Some(WEIGH), Arguments::WeighedThenNames(1), None),
                "upper" | "lower" | "title" | "capitalize" | "replace" | "string" | "safe" | "escape" | "e"
                | "indent" => (Some(WEIGH), Arguments::Weighed, None),
                name => return refuse(format!("the filter {name} is not one of those for chat templates")),
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
            return refuse(format!("the test {} is not one of those for chat templates", old.name));
        };
        let new = ast::Test { name: old.name, expr, args: self.arguments(&old.args, how)? };
        Ok(Expr::Test(Spanned::new(new, old.span())))
    }
}

/// Refuses a filter whose argument at `index`, the name of what it applies, is computed or not in the lists.
fn one_of(filter: &ast::Filter<'_>, index: usize, names: &[&[&str]]) -> Engine<()> {
    match filter.args.get(index) {
        Some(CallArg::Pos(Expr::Const(constant)))
            if constant.value.as_str().is_some_and(|name| names.iter().any(|list| list.contains(&name))) =>
        {
            Ok(())
        }
        Some(CallArg::Pos(_)) => refuse(format!("what {} applies is not one of those for chat templates", filter.name)),
        _ => Ok(()),
    }
}
