//! `token create`: a join token that works once.

use http::Method;
use netfabric::wire::api::{TokenRequest, TokenResponse};

use crate::args::TokenCommand;
use crate::client::ANSWER;
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

pub async fn run(command: TokenCommand, session: &Session) -> anyhow::Result<()> {
    let TokenCommand::Create { ttl } = command;
    let request = TokenRequest {
        ttl_seconds: ttl.as_secs().max(1),
    };
    let answer: TokenResponse = session
        .client
        .send(Method::POST, "/v1/tokens", &request, ANSWER)
        .await
        .map_err(Failure::from)?;
    let expires = output::time(answer.expires);
    session
        .out
        .text_or(&answer, || answer.token.clone(), |_| answer.line.clone())?;
    session.out.hint(&format!("works once, until {expires}"));
    Ok(())
}
