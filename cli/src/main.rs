//! The command `tritone`.
fn main() {}
