//! Expressions: operators, literals, calls.

use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned};

use super::filters::Arguments;
use super::{Bounds, Engine, is_constant, is_data, refused, through};
use crate::template::size::{COLLECT, DATA, KEY, LENGTH, SETTLE, WEIGH};

fn is_text(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(constant) if constant.value.as_str().is_some())
}

/// Whether a sum has a string or a number among its terms: then it is one, or fails.
fn is_scalar_sum(sum: &ast::BinOp<'_>) -> bool {
    let scalar =
        |expr: &Expr<'_>| is_constant(expr) || matches!(expr, Expr::BinOp(op) if matches!(op.op, BinOpKind::Concat));
    scalar(&sum.right)
        || scalar(&sum.left)
        || matches!(&sum.left, Expr::BinOp(left) if matches!(left.op, BinOpKind::Add) && is_scalar_sum(left))
}

fn join<'a>(old: &Spanned<ast::BinOp<'a>>, left: Expr<'a>, right: Expr<'a>) -> Expr<'a> {
    Expr::BinOp(Spanned::new(ast::BinOp { op: old.op, left, right }, old.span()))
}

impl Bounds {
    pub(super) fn expr<'a>(&mut self, expr: &Expr<'a>) -> Engine<Expr<'a>> {
        self.nested(|bounds| bounds.expr_inside(expr))
    }

    fn expr_inside<'a>(&mut self, expr: &Expr<'a>) -> Engine<Expr<'a>> {
        Ok(match expr {
            Expr::Var(old) => Expr::Var(Spanned::new(ast::Var { id: old.id }, old.span())),
            Expr::Const(old) => Expr::Const(Spanned::new(ast::Const { value: old.value.clone() }, old.span())),
            Expr::Slice(old) => {
                let new = ast::Slice {
                    expr: self.expr_through(LENGTH, &old.expr)?,
                    start: self.optional(old.start.as_ref())?,
                    stop: self.optional(old.stop.as_ref())?,
                    step: self.optional(old.step.as_ref())?,
                };
                through(COLLECT, Expr::Slice(Spanned::new(new, old.span())))
            }
            Expr::UnaryOp(old) => {
                let not = matches!(old.op, ast::UnaryOpKind::Not);
                let op = if not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
                Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: self.expr(&old.expr)? }, old.span()))
            }
            Expr::BinOp(old) => self.binary(old)?,
            Expr::Compare(old) => {
                let first = self.expr_through(WEIGH, &old.expr)?;
                let next = |link: &ast::CompareOp<'a>| {
                    Ok(ast::CompareOp { op: link.op, expr: self.expr_through(WEIGH, &link.expr)? })
                };
                let ops = old.ops.iter().map(next).collect::<Engine<_>>()?;
                Expr::Compare(Spanned::new(ast::Compare { expr: first, ops }, old.span()))
            }
            Expr::IfExpr(old) => {
                let new = ast::IfExpr {
                    test_expr: self.expr(&old.test_expr)?,
                    true_expr: self.expr(&old.true_expr)?,
                    false_expr: self.optional(old.false_expr.as_ref())?,
                };
                Expr::IfExpr(Spanned::new(new, old.span()))
            }
            Expr::Filter(old) => self.filter(old)?,
            Expr::Test(old) => self.test(old)?,
            Expr::GetAttr(old) => {
                Expr::GetAttr(Spanned::new(ast::GetAttr { expr: self.expr(&old.expr)?, name: old.name }, old.span()))
            }
            Expr::GetItem(old) => {
                let container = self.expr(&old.expr)?;
                let new = ast::GetItem {
                    // The characters of a string are counted for each index; a name is for maps.
                    expr: if is_text(&old.subscript_expr) { container } else { through(COLLECT, container) },
                    subscript_expr: self.expr(&old.subscript_expr)?,
                };
                Expr::GetItem(Spanned::new(new, old.span()))
            }
            Expr::Call(old) => {
                // What a method returns is part of what it is called on.
                let filter = if matches!(old.expr, Expr::GetAttr(_)) { COLLECT } else { SETTLE };
                through(filter, Expr::Call(self.call(old)?))
            }
            Expr::List(old) => {
                let new = Expr::List(Spanned::new(ast::List { items: self.all(&old.items)? }, old.span()));
                if old.items.iter().all(is_constant) { new } else { through(SETTLE, new) }
            }
            Expr::Tuple(old) => {
                let new = Expr::Tuple(Spanned::new(ast::Tuple { items: self.all(&old.items)? }, old.span()));
                if old.items.iter().all(is_constant) { new } else { through(SETTLE, new) }
            }
            Expr::Map(old) => {
                let keys = old.keys.iter().map(|name| self.expr_through(KEY, name)).collect::<Engine<_>>()?;
                let values = self.all(&old.values)?;
                let new = Expr::Map(Spanned::new(ast::Map { keys, values }, old.span()));
                if old.keys.iter().chain(&old.values).all(is_constant) { new } else { through(SETTLE, new) }
            }
        })
    }

    fn binary<'a>(&mut self, old: &Spanned<ast::BinOp<'a>>) -> Engine<Expr<'a>> {
        let (left, right) = match old.op {
            BinOpKind::Add => {
                let sum = self.sum(old)?;
                return Ok(if is_scalar_sum(old) { sum } else { through(SETTLE, sum) });
            }
            BinOpKind::Mul => {
                let product = join(old, self.expr(&old.left)?, self.expr(&old.right)?);
                let text = is_text(&old.left) || is_text(&old.right);
                return Ok(if text { product } else { through(SETTLE, product) });
            }
            BinOpKind::Concat => {
                let mut part = |expr: &Expr<'a>| -> Engine<Expr<'a>> {
                    let new = self.expr(expr)?;
                    Ok(if is_data(expr) { new } else { through(DATA, new) })
                };
                (part(&old.left)?, part(&old.right)?)
            }
            // A constant is not a container, and comparing with it ends at once.
            BinOpKind::Eq | BinOpKind::Ne | BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte
                if !is_constant(&old.right) =>
            {
                (self.expr_through(WEIGH, &old.left)?, self.expr(&old.right)?)
            }
            BinOpKind::In if !is_constant(&old.left) => {
                (self.expr_through(WEIGH, &old.left)?, self.expr_through(WEIGH, &old.right)?)
            }
            _ => (self.expr(&old.left)?, self.expr(&old.right)?),
        };
        Ok(join(old, left, right))
    }

    /// A chain of `+` is settled as a whole: it has few terms, and none is too large.
    fn sum<'a>(&mut self, old: &Spanned<ast::BinOp<'a>>) -> Engine<Expr<'a>> {
        let left = match &old.left {
            Expr::BinOp(inner) if matches!(inner.op, BinOpKind::Add) => self.nested(|bounds| bounds.sum(inner))?,
            left => self.expr(left)?,
        };
        let right = self.expr(&old.right)?;
        Ok(join(old, left, right))
    }

    pub(super) fn call<'a>(&mut self, old: &Spanned<ast::Call<'a>>) -> Engine<Spanned<ast::Call<'a>>> {
        let method = matches!(old.expr, Expr::GetAttr(_));
        let arguments = if method { Arguments::Weighed } else { Arguments::Free };
        let mut args = self.arguments(&old.args, arguments)?;
        if args.is_empty() && matches!(&old.expr, Expr::GetAttr(attribute) if attribute.name == "cycle") {
            // The engine divides by their number.
            args.push(CallArg::Pos(refused("cycle needs arguments", old.span())));
        }
        let new = ast::Call { expr: self.expr(&old.expr)?, args };
        Ok(Spanned::new(new, old.span()))
    }
}
