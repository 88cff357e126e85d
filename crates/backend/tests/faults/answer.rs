//! What the server answers, in the state in which it is.

use serde_json::{Value, json};

use super::data::Place;
use super::request::{Request, Target};
use super::served::{SERVED, Served, groups, resources};
use super::status::{
    Whole, about, bad_request, expired, forbidden, is_starting, no_such_resource, not_served, unauthorized,
};
use super::{Fault, State, write};

/// An answer.
pub enum Answer {
    /// None, ever.
    Nothing,
    /// The connection ends.
    End,
    /// It breaks off.
    Half(String),
    Whole(Whole),
    /// A watch of this, from this version.
    Watch(Target, u64),
}

impl State {
    pub fn answer(&mut self, request: &Request) -> Answer {
        match self.fault {
            Fault::Tarpit => return Answer::Nothing,
            Fault::Cuts => return Answer::End,
            Fault::Truncates => return Answer::Half("{\"metadata\": {\"resourceVer".into()),
            Fault::Page(code) => {
                return Answer::Whole(Whole {
                    code,
                    content: "text/html",
                    text: "<html><body>Please log in</body></html>".into(),
                });
            }
            Fault::Status(code, reason, message) => {
                let status = super::status::status(code, reason, message, json!({}));
                return Answer::Whole(Whole::json(code, &status));
            }
            _ => {}
        }
        let token = request.token();
        let is_powerless = token.is_some() && token == self.powerless.as_deref();
        if !is_powerless && self.token.is_some() && token != self.token.as_deref() {
            return Answer::Whole(unauthorized());
        }
        let is_ours = request.place().starts_with("/apis/projectcalico.org/");
        if self.fault == Fault::Starts && is_ours {
            return Answer::Whole(is_starting());
        }
        match request.target() {
            Some(target) => self.about_objects(request, target, is_powerless),
            None => Answer::Whole(self.discovery(request)),
        }
    }

    /// Whether the server has a resource now, whatever it says of it in discovery.
    fn serves(&self, served: &Served) -> bool {
        let is_ours = served.is_ours();
        let is_away = match self.fault {
            Fault::Undefined => is_ours,
            Fault::Old => served.plural == "nodes",
            _ => is_ours && self.lacks.contains(&served.plural.as_str()),
        };
        !is_away
    }

    fn discovery(&self, request: &Request) -> Whole {
        let served: Vec<&Served> = SERVED.iter().filter(|served| self.serves(served)).collect();
        if request.place() == "/apis" {
            if self.fault == Fault::Starts {
                return Whole::json(200, &groups(&[]));
            }
            return Whole::json(200, &groups(&served));
        }
        let is_in = |one: &Served| {
            let rest = request.place().strip_prefix(&one.folder());
            !one.is_ours() && rest.is_some_and(|rest| rest.starts_with('/'))
        };
        if SERVED.iter().any(is_in) {
            return no_such_resource();
        }
        let version = request.place().strip_prefix("/apis/").unwrap_or("none");
        let of_it: Vec<&Served> = served.into_iter().filter(|one| one.api_version() == version).collect();
        match of_it.is_empty() {
            true => not_served(),
            false => Whole::json(200, &resources(&of_it)),
        }
    }

    fn about_objects(&mut self, request: &Request, target: Target, is_powerless: bool) -> Answer {
        let served = &SERVED[target.resource];
        let is_forbidden = is_powerless || self.fault == Fault::Forbids && served.plural == "ippools";
        if is_forbidden {
            return Answer::Whole(forbidden(served, request.verb(&target), &target));
        }
        if !self.serves(served) || self.hides.contains(&served.plural.as_str()) {
            return Answer::Whole(match served.is_ours() {
                true => not_served(),
                false => no_such_resource(),
            });
        }
        match (request.method.as_str(), &target.name) {
            ("GET", _) if request.is_watch() => match request.number("resourceVersion") {
                Some(from) if from > 0 => Answer::Watch(target, from),
                // It would begin with what there is now. Nobody asks so.
                _ => Answer::Whole(bad_request("this server has no watches from nowhere")),
            },
            ("GET", None) => Answer::Whole(self.list(request, &target)),
            ("GET", Some(name)) => {
                let place = target.place(name);
                Answer::Whole(match self.data.get(&place) {
                    Some(object) => Whole::json(200, object),
                    None => about(&place, 404, "NotFound", "not found"),
                })
            }
            (_, name) => {
                if let (Some(name), true) = (name, self.contested > 0) {
                    self.contested -= 1;
                    self.data.touch(&target.place(name));
                }
                Answer::Whole(write::write(&mut self.data, request, &target))
            }
        }
    }

    /// A list, or a page of one: all pages are of the version that the first one had.
    fn list(&self, request: &Request, target: &Target) -> Whole {
        let served = &SERVED[target.resource];
        let token = request.parameter("continue");
        let (version, after) = match token.as_deref().map(read_token) {
            None => (self.data.version, None),
            Some(Some((version, _))) if version < self.data.compacted => {
                let message = "The provided continue parameter is too old to display a consistent list result.";
                return Whole::json(410, &expired(message));
            }
            Some(Some((version, after))) => (version, Some(after)),
            Some(None) => return bad_request("continue key is not valid"),
        };
        let only = request.parameter("fieldSelector");
        let only = only.as_deref().and_then(|text| text.strip_prefix("metadata.name="));
        let there = self.data.at(version);
        let mut wanted: Vec<(&Place, &Value)> = there
            .into_iter()
            .filter(|(place, _)| target.has(place) && only.is_none_or(|name| name == place.name))
            .filter(|(place, _)| {
                after
                    .as_ref()
                    .is_none_or(|after| (&place.namespace, &place.name) > (&after.0, &after.1))
            })
            .collect();
        let limit = request.number("limit").and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if wanted.len() > limit {
            // Whoever picks by a field is not told how many are left.
            if only.is_none() {
                metadata["remainingItemCount"] = (wanted.len() - limit).into();
            }
            wanted.truncate(limit);
            metadata["continue"] = wanted.last().map(|(place, _)| token_after(version, place)).into();
        }
        let items: Vec<&Value> = wanted.into_iter().map(|(_, object)| object).collect();
        let list = json!({
            "kind": format!("{}List", served.kind), "apiVersion": served.api_version(), "metadata": metadata, "items": items
        });
        Whole::json(200, &list)
    }
}

/// Where the next page goes on: not readable in a query as it is.
fn token_after(version: u64, place: &Place) -> String {
    let namespace = place.namespace.as_deref().unwrap_or_default();
    format!("{version}/{namespace}/{}==", place.name)
}

type After = (Option<String>, String);

fn read_token(token: &str) -> Option<(u64, After)> {
    let mut parts = token.strip_suffix("==")?.split('/');
    let (version, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
    Some((version.parse().ok()?, (namespace, name.to_owned())))
}
