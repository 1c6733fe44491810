//! `deploy`: make a service what the manifest and the flags say, and see it come up.

use std::path::Path;

use anyhow::Context;
use http::Method;
use netfabric::wire::api::{DeployRequest, DeployResponse, ErrorCode, ServiceView};
use scheduler::model::Name;

use super::wait;
use crate::args::DeployArgs;
use crate::client::{ClientError, REGISTRY_ANSWER};
use crate::failure::Failure;
use crate::files;
use crate::manifest::{self, Manifest};
use crate::printer;
use crate::session::{Session, name};

/// Tries when someone else changes the service at the same moment.
const ATTEMPTS: usize = 3;

pub async fn run(args: DeployArgs, session: &Session) -> anyhow::Result<()> {
    let env_files = env_files(&args)?;
    let (session, name, response) = put(&args, &env_files, session).await?;
    if args.dry_run {
        return dry(&response, &session);
    }
    let out = session.out;
    let revision = response.created_revision.as_ref().or(response
        .service
        .status
        .latest_created
        .as_ref());
    match &response.created_revision {
        Some(revision) => out.progress(&format!(
            "service/{name}: revision {} from {}",
            revision.name, response.image.digest
        )),
        None => out.progress(&format!(
            "service/{name}: no new revision, the template is the same"
        )),
    }
    if let Some(revision) = revision
        && !args.no_wait
    {
        wait::ready(&session, &name, &revision.name, args.wait_timeout).await?;
    }
    let view = session.service(&name).await?;
    if out.is_data() {
        return out.one(&view);
    }
    printer::line(&view.url)?;
    hint_curl(&session, &view).await;
    Ok(())
}

/// Sends the service as the manifest or the stored one with the flags over it. The session that
/// comes back has the manifest's namespace when it names one.
async fn put(
    args: &DeployArgs,
    env_files: &[(String, String)],
    session: &Session,
) -> anyhow::Result<(Session, Name, DeployResponse)> {
    let from_file = args.file.as_deref().map(read_manifest).transpose()?;
    let mut session = session.clone();
    if let Some(namespace) = from_file.as_ref().and_then(|m| m.namespace.clone()) {
        session.namespace = namespace;
    }
    let name = service_name(args, from_file.as_ref())?;
    let mut attempt = 1;
    loop {
        let (base, if_version) = match &from_file {
            Some(manifest) => (manifest.clone(), None),
            None => stored(&session, &name).await?,
        };
        let manifest = manifest::override_with(base, args, env_files).map_err(Failure::usage)?;
        if manifest.image().is_empty() {
            return Err(Failure::usage(format!("no image is named for {name}"))
                .hint(format!("selvedge deploy {name} --image REF"))
                .into());
        }
        let request = request(manifest, if_version, args.dry_run);
        let path = session.service_path(&name);
        let answer = session
            .client
            .send(Method::PUT, &path, &request, REGISTRY_ANSWER)
            .await;
        match answer {
            Ok(response) => return Ok((session, name, response)),
            Err(ClientError::Api(error))
                if error.code == ErrorCode::Conflict
                    && from_file.is_none()
                    && attempt < ATTEMPTS =>
            {
                attempt += 1;
                session
                    .out
                    .progress("someone else changed it meanwhile, trying again");
                tokio::time::sleep(wait::PACE).await;
            }
            Err(error) => return Err(Failure::from(error).into()),
        }
    }
}

fn request(manifest: Manifest, if_version: Option<u64>, dry_run: bool) -> DeployRequest {
    DeployRequest {
        spec: manifest.spec,
        scale: manifest.scale,
        traffic: manifest.traffic,
        labels: manifest.labels,
        annotations: manifest.annotations,
        if_version,
        dry_run,
    }
}

/// The service as it is, so that flags change only what they name; a new one when there is none.
async fn stored(session: &Session, name: &Name) -> Result<(Manifest, Option<u64>), Failure> {
    match session
        .client
        .get::<ServiceView>(&session.service_path(name))
        .await
    {
        Ok(view) => {
            let service = view.service;
            let manifest = Manifest {
                name: Some(service.key.name),
                namespace: Some(service.key.namespace),
                spec: service.spec,
                scale: service.scale,
                traffic: service.traffic,
                labels: service.meta.labels,
                annotations: service.meta.annotations,
            };
            Ok((manifest, Some(service.meta.resource_version)))
        }
        Err(error) if error.is_not_found() => Ok((Manifest::default(), Some(0))),
        Err(error) => Err(error.into()),
    }
}

fn service_name(args: &DeployArgs, manifest: Option<&Manifest>) -> Result<Name, Failure> {
    let in_file = manifest.and_then(|m| m.name.clone());
    let given = args.name.as_deref().map(name).transpose()?;
    given.or(in_file).ok_or_else(|| {
        Failure::usage("the service has no name").hint("selvedge deploy NAME --image REF")
    })
}

fn read_manifest(path: &Path) -> anyhow::Result<Manifest> {
    let shown = if path == Path::new("-") {
        "stdin".to_owned()
    } else {
        path.display().to_string()
    };
    let text = read_text(path).with_context(|| format!("cannot read {shown}"))?;
    let parsed = manifest::parse(&shown, &text);
    Ok(parsed.map_err(|error| Failure::usage(error.to_string()))?)
}

/// One that is too large is told by who parses it.
fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = files::read_past(path, manifest::MAX_BYTES)?;
    String::from_utf8(bytes).map_err(|_| Failure::usage("it is no text (UTF-8)").into())
}

fn env_files(args: &DeployArgs) -> anyhow::Result<Vec<(String, String)>> {
    let read = |path: &std::path::PathBuf| {
        let shown = path.display().to_string();
        let text = read_text(path);
        text.with_context(|| format!("cannot read {shown}"))
            .map(|text| (shown, text))
    };
    args.env_file.iter().map(read).collect()
}

fn dry(response: &DeployResponse, session: &Session) -> anyhow::Result<()> {
    if session.out.is_data() {
        return session.out.value(response);
    }
    let name = &response.service.key.name;
    printer::line(format!(
        "service/{name} can be deployed from {}",
        response.image.digest
    ))?;
    if let Some(receipt) = &response.receipt {
        let best = receipt
            .verdicts
            .iter()
            .find(|verdict| verdict.outcome.is_ok());
        if let Some(verdict) = best {
            session
                .out
                .hint(&format!("{} would start it first", verdict.name));
        }
    }
    Ok(())
}

/// How to call it from here, where its name may not resolve.
async fn hint_curl(session: &Session, view: &ServiceView) {
    let (scheme, host) = view.url.split_once("://").unwrap_or(("http", &view.url));
    // Only a hint: when the nodes cannot be asked, the URL above has to do.
    let nodes = session.nodes().await.unwrap_or_default();
    let door = nodes
        .iter()
        .filter(|n| n.alive && n.serving)
        .find_map(|n| n.ingress.first());
    if let Some(ip) = door {
        let ip = if ip.is_ipv6() {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        let name = host.split(':').next().unwrap_or(host);
        let port = host
            .split_once(':')
            .map_or_else(String::new, |(_, port)| format!(":{port}"));
        let hint = if scheme == "https" {
            format!("try: curl --resolve '{name}:443:{ip}' https://{name}/")
        } else {
            format!("try: curl -H 'Host: {name}' http://{ip}{port}/")
        };
        session.out.hint(&hint);
    }
}
