//! The live nf_tables keep the contract of the port.

use std::time::Duration;

use futures::future::BoxFuture;
use kernel::nft::NftKernel;
use kernel::nft::contract::Bench;
use linux::nft::LiveNft;
use testkit::netns::in_netns;

kernel::nft_contract_tests!(examine);

fn examine(clause: for<'a> fn(&'a mut dyn Bench) -> BoxFuture<'a, ()>) {
    in_netns(move || async move {
        let mut bench = Live(LiveNft::open().expect("opens"), LiveNft::open().expect("opens"));
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, clause(&mut bench))
            .await
            .expect("every event comes in time");
    });
}

struct Live(LiveNft, LiveNft);

impl Bench for Live {
    fn kernel(&mut self) -> &mut dyn NftKernel {
        &mut self.0
    }

    fn stranger(&mut self) -> &mut dyn NftKernel {
        &mut self.1
    }
}
