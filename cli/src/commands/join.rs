//! stub
use crate::args::JoinArgs; use crate::printer::Printer;
pub async fn run(_a: JoinArgs, _t: Option<&str>, _o: Printer) -> anyhow::Result<()> { Ok(()) }
