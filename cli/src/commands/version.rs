//! `version`: this command's, and the node's when it can be reached.

use netfabric::wire::api::VersionView;
use serde::Serialize;

use crate::args::Global;
use crate::printer::Printer;
use crate::session::Session;

const CLIENT: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    node: Option<VersionView>,
}

pub async fn run(global: &Global, out: Printer) -> anyhow::Result<()> {
    let session = Session::new(global, out)?;
    let node = match session.client.get::<VersionView>("/v1/version").await {
        Ok(view) => Some(view),
        Err(error) => {
            out.hint(&format!("{error}"));
            None
        }
    };
    let versions = Versions {
        client: CLIENT,
        node,
    };
    out.text_or(
        &versions,
        || format!("selvedge/{CLIENT}"),
        |_| match &versions.node {
            Some(v) => format!(
                "selvedge {CLIENT}\nnode {} {} (cluster {})",
                v.node, v.version, v.cluster
            ),
            None => format!("selvedge {CLIENT}"),
        },
    )
}
