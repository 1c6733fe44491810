//! What every asking command needs: the node, the namespace, the printer; and finding things by
//! the names people type.

use hyper::upgrade::Upgraded;
use netfabric::wire::api::{Diagnosis, DomainView, InstanceView, NodeStatus, ServiceView};
use netfabric::wire::usage::{Amounts, UsageView};
use scheduler::model::{InstanceId, Name, Revision};
use serde::Serialize;

use crate::args::Global;
use crate::client::{Client, ClientError, encoded};
use crate::contexts;
use crate::failure::Failure;
use crate::output::Row;
use crate::printer::Printer;
use crate::subject::Subject;
use crate::suggest;

#[derive(Debug, Clone)]
pub struct Session {
    pub client: Client,
    pub namespace: Name,
    pub out: Printer,
    pub yes: bool,
}

impl Session {
    pub fn new(global: &Global, out: Printer) -> anyhow::Result<Self> {
        let client = contexts::client(global)?;
        Ok(Self {
            client,
            namespace: global.namespace.clone(),
            out,
            yes: global.yes,
        })
    }

    pub fn service_path(&self, name: &Name) -> String {
        format!("/v1/services/{}/{name}", self.namespace)
    }

    pub async fn services(&self, all: bool) -> Result<Vec<ServiceView>, Failure> {
        Ok(self
            .client
            .get(&format!("/v1/services{}", self.scope(all)))
            .await?)
    }

    pub async fn revisions(&self, all: bool) -> Result<Vec<Revision>, Failure> {
        Ok(self
            .client
            .get(&format!("/v1/revisions{}", self.scope(all)))
            .await?)
    }

    pub async fn instances(&self, all: bool) -> Result<Vec<InstanceView>, Failure> {
        Ok(self
            .client
            .get(&format!("/v1/instances{}", self.scope(all)))
            .await?)
    }

    pub async fn instances_of(&self, service: &Name) -> Result<Vec<InstanceView>, ClientError> {
        let path = format!(
            "/v1/instances?namespace={}&service={service}",
            self.namespace
        );
        self.client.get(&path).await
    }

    /// What the instances of the namespace use, or those of every namespace.
    pub async fn usage(&self, all: bool) -> Result<UsageView, ClientError> {
        let path = format!("/v1/usage{}", self.scope(all));
        self.client.get(&path).await
    }

    /// What a service used on all nodes, since they count.
    pub async fn used_by(&self, service: &Name) -> Result<Amounts, ClientError> {
        let path = format!("/v1/usage?namespace={}&service={service}", self.namespace);
        let view: UsageView = self.client.get(&path).await?;
        let mut sum = Amounts::default();
        view.revisions.iter().for_each(|r| sum.add(&r.total));
        Ok(sum)
    }

    pub async fn domains(&self, all: bool) -> Result<Vec<DomainView>, Failure> {
        let mut found: Vec<DomainView> = self.client.get("/v1/domains").await?;
        found.retain(|d| all || d.namespace == self.namespace);
        Ok(found)
    }

    pub async fn nodes(&self) -> Result<Vec<NodeStatus>, ClientError> {
        self.client.get("/v1/nodes").await
    }

    /// A node's protections; of the node that is asked without a name.
    pub async fn diagnosis(&self, node: Option<&Name>) -> Result<Diagnosis, ClientError> {
        let which = node.map_or_else(String::new, |name| format!("?node={name}"));
        self.client.get(&format!("/v1/doctor{which}")).await
    }

    /// The instance that `text` names: an instance, the start of one's name, or a service, of which a
    /// ready one is taken.
    pub async fn instance_of(&self, text: &str) -> Result<InstanceId, Failure> {
        let wanted = match Subject::parse(text)? {
            Subject::Service(wanted) => {
                let all = self.instances(false).await?;
                let of = |i: &&InstanceView| i.service.as_str() == wanted;
                let ready = |i: &&InstanceView| i.alive && i.state.serves();
                if let Some(ready) = all.iter().filter(of).find(ready) {
                    return Ok(ready.id.clone());
                }
                // A service's name is also the start of its instances' names.
                if all.iter().any(|i| of(&i)) || self.has_service(&wanted).await {
                    let message = format!("service `{wanted}` has no ready instance");
                    return Err(Failure::not_found(message)
                        .hint("call the service once and it starts, or name an instance"));
                }
                wanted
            }
            Subject::Instance(wanted) => wanted,
            _ => {
                return Err(Failure::usage(format!("`{text}` is no instance"))
                    .hint("name a service or instance/NAME"));
            }
        };
        let found = find(self.instances(false).await?, &wanted).map(|found| found.id);
        if found.is_ok() {
            return found;
        }
        // One that has ended is known a while longer, and what is wrong with it then too.
        let path = format!("/v1/instances/{}", encoded(&wanted));
        let ended = self.client.get::<InstanceView>(&path).await;
        ended.map(|ended| ended.id).or(found)
    }

    async fn has_service(&self, text: &str) -> bool {
        match Name::new(text) {
            Ok(name) => self.service(&name).await.is_ok(),
            Err(_) => false,
        }
    }

    /// A connection to an instance, for `what` is wanted of it.
    pub async fn touch<Q: Serialize + Sync>(
        &self,
        instance: &InstanceId,
        what: &str,
        request: &Q,
    ) -> Result<Upgraded, Failure> {
        let path = format!("/v1/instances/{}/{what}", encoded(&instance.0));
        Ok(self.client.switch(&path, request).await?)
    }

    fn scope(&self, all: bool) -> String {
        if all {
            String::new()
        } else {
            format!("?namespace={}", self.namespace)
        }
    }

    /// The service of exactly this name.
    pub async fn service(&self, name: &Name) -> Result<ServiceView, Failure> {
        match self.client.get(&self.service_path(name)).await {
            Err(error) if error.is_not_found() => Err(self.no_service(name, error).await),
            answer => Ok(answer?),
        }
    }

    /// A 404 about a service, with the nearest name there is.
    pub async fn no_service(&self, name: &Name, error: ClientError) -> Failure {
        let failure = Failure::from(error);
        if !failure.hint.is_empty() {
            return failure;
        }
        // The list only serves the hint: without it the 404 stands.
        let services = self.services(false).await.unwrap_or_default();
        let names = services.iter().map(|s| s.service.key.name.as_str());
        match suggest::nearest(name.as_str(), names) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint("selvedge get services"),
        }
    }
}

/// The name as a name, or a usage failure.
pub fn name(text: &str) -> Result<Name, Failure> {
    Name::new(text).map_err(|error| Failure::usage(error.to_string()))
}

/// The one item of this name or of this unique prefix.
pub fn find<T: Row>(mut items: Vec<T>, wanted: &str) -> Result<T, Failure> {
    if let Some(at) = items.iter().position(|item| item.name() == wanted) {
        return Ok(items.swap_remove(at));
    }
    let starts = |item: &T| !wanted.is_empty() && item.name().starts_with(wanted);
    let matching: Vec<usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| starts(item))
        .map(|(at, _)| at)
        .collect();
    match matching.as_slice() {
        [only] => Ok(items.swap_remove(*only)),
        [] => {
            let names: Vec<String> = items.iter().map(Row::name).collect();
            let hint = match suggest::nearest(wanted, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("selvedge get {}", T::PLURAL),
            };
            Err(Failure::not_found(format!("there is no {} `{wanted}`", T::KIND)).hint(hint))
        }
        many => {
            let names = many.iter().map(|at| items[*at].name()).collect();
            let message = format!("`{wanted}` is the start of {} {}", many.len(), T::PLURAL);
            Err(Failure::usage(message)
                .details(names)
                .hint("type more of the name"))
        }
    }
}
