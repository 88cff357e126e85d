//! IPAM, the wiring of pods and the kernel, as the world has them.

use std::net::IpAddr;

use futures::channel::oneshot;
use futures::future::BoxFuture;

use super::super::ports::*;
use super::World;

impl Allocator for World {
    fn assign(&self, wants: Vec<Want>) -> BoxFuture<'_, Vec<Result<Given, AllocError>>> {
        Box::pin(async move {
            if let Err(why) = self.step("assign").await {
                return wants.iter().map(|_| Err(AllocError::TryAgain(why.clone()))).collect();
            }
            let answers = {
                let mut state = self.state();
                state.batches.push(wants.len());
                let given = |addresses| Given {
                    addresses,
                    endpoint: None,
                };
                wants
                    .iter()
                    .map(|want| state.assign(want).map(given))
                    .collect::<Vec<_>>()
            };
            for (want, answer) in wants.iter().zip(&answers) {
                if let (Some(preview), Ok(given)) = (&want.preview, answer) {
                    preview.say(&given.addresses);
                }
            }
            let _ = self.step("assigned").await;
            answers
        })
    }

    fn release<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), AllocError>> {
        Box::pin(async move {
            self.step("release").await.map_err(AllocError::TryAgain)?;
            {
                let mut state = self.state();
                for address in state.held.remove(handle).unwrap_or_default() {
                    let own = |id: &str| {
                        id.split('/')
                            .next()
                            .is_some_and(|container| handle.ends_with(&format!(".{container}")))
                    };
                    let mut routes = state.routes.iter().filter(|(id, _)| own(id));
                    let routed = routes.any(|(_, local)| local.addresses.contains(&address));
                    assert!(!routed, "{address} is released while it is routed");
                    state.free.push_back(address);
                }
            }
            let _ = self.step("released").await;
            Ok(())
        })
    }

    fn holder(&self, address: IpAddr) -> BoxFuture<'_, Result<Option<String>, AllocError>> {
        Box::pin(async move {
            self.step("holder").await.map_err(AllocError::TryAgain)?;
            let state = self.state();
            let holder = state.held.iter().find(|(_, addresses)| addresses.contains(&address));
            Ok(holder.map(|(handle, _)| handle.clone()))
        })
    }

    fn held<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, AllocError>> {
        Box::pin(async move {
            self.step("held").await.map_err(AllocError::TryAgain)?;
            Ok(self.state().held.get(handle).cloned().unwrap_or_default())
        })
    }
}

impl Pods for World {
    fn attach(
        &self,
        link: PodLink,
        later: Option<oneshot::Receiver<Vec<IpAddr>>>,
    ) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("attach").await?;
            self.state()
                .devices
                .insert(link.host_device.clone(), (link.alias.clone(), link.addresses));
            let _ = self.step("attached").await;
            let Some(later) = later else { return Ok(()) };
            let Ok(came) = later.await else { return Ok(()) };
            self.step("address").await?;
            {
                let mut state = self.state();
                let device = state.devices.get_mut(&link.host_device);
                let (alias, addresses) = device.ok_or("there is no such device")?;
                assert_eq!(*alias, link.alias);
                *addresses = came;
            }
            let _ = self.step("addressed").await;
            Ok(())
        })
    }

    fn detach(&self, wired: Wired) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("detach").await?;
            {
                let mut state = self.state();
                if state
                    .devices
                    .get(&wired.host_device)
                    .is_some_and(|(found, _)| *found == wired.alias)
                {
                    state.devices.remove(&wired.host_device);
                    // Routes go with their device.
                    state.routes.retain(|_, local| local.device != wired.host_device);
                }
            }
            let _ = self.step("detached").await;
            Ok(())
        })
    }

    fn check(&self, link: PodLink) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("check").await?;
            match self.state().devices.get(&link.host_device) {
                Some((alias, addresses)) if *alias == link.alias && *addresses == link.addresses => Ok(()),
                found => Err(format!("{} is {found:?}", link.host_device)),
            }
        })
    }

    fn exists<'a>(&'a self, host_device: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            self.step("exists").await?;
            Ok(self.state().devices.contains_key(host_device))
        })
    }

    fn devices<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<HostDevice>, String>> {
        Box::pin(async move {
            self.step("devices").await?;
            let state = self.state();
            let device = |(name, (alias, _)): (&String, &(String, Vec<IpAddr>))| HostDevice {
                name: name.clone(),
                alias: Some(alias.clone()).filter(|alias| !alias.is_empty()),
                mtu: 1480,
            };
            let devices = state.devices.iter().filter(|(name, _)| name.starts_with(prefix));
            Ok(devices.map(device).collect())
        })
    }

    fn mark<'a>(&'a self, host_device: &'a str, alias: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.step("mark").await?;
            let mut state = self.state();
            let (found, _) = state.devices.get_mut(host_device).ok_or("there is no such device")?;
            match found.is_empty() || found == alias {
                true => *found = alias.to_owned(),
                false => return Err(format!("{host_device} is {found}'s")),
            }
            Ok(())
        })
    }
}

impl Dataplane for World {
    fn announce(&self, id: String, endpoint: LocalEndpoint) {
        assert_ne!(endpoint.addresses, Vec::<IpAddr>::new(), "{id}");
        assert_eq!(endpoint.resource.spec.ip_networks, Vec::new(), "{id}: not certain yet");
        self.state().announced.insert(id);
    }

    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let (before, after) = if endpoint.is_some() {
                ("program", "programmed")
            } else {
                ("unprogram", "unprogrammed")
            };
            self.step(before).await?;
            {
                let mut state = self.state();
                state.announced.remove(&id);
                match endpoint {
                    Some(endpoint) if !state.devices.contains_key(&endpoint.device) => {
                        return Err(format!("{} does not exist", endpoint.device));
                    }
                    Some(endpoint) => state.routes.insert(
                        id,
                        LocalEndpoint {
                            fresh: false,
                            ..endpoint
                        },
                    ),
                    None => state.routes.remove(&id),
                };
            }
            let _ = self.step(after).await;
            Ok(())
        })
    }
}
