//! `status`: the cluster at a glance.

use netfabric::wire::api::Status;

use crate::args::Format;
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

pub async fn run(session: &Session) -> anyhow::Result<()> {
    let status: Status = session
        .client
        .get("/v1/status")
        .await
        .map_err(Failure::from)?;
    let wide = session.out.format == Format::Wide;
    let name = || format!("cluster/{}", status.cluster.id);
    session
        .out
        .text_or(&status, name, |now| output::status(&status, wide, now))
}
