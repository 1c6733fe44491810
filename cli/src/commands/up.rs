//! stub
use crate::args::UpArgs; use crate::printer::Printer;
pub async fn run(_a: UpArgs, _o: Printer) -> anyhow::Result<()> { Ok(()) }
