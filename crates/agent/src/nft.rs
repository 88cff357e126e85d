//! nf_tables as the agent has it: opened when it can be. A kernel without it is a reason that status shows, not the end.

use std::collections::BTreeSet;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use kernel::nft::{ChainName, Generation, NftError, NftEvent, NftKernel, Rules, TableName, TableState, Transaction};
use linux::nft::LiveNft;

/// nf_tables of this network namespace, opened when it is first needed and tried again each time.
#[derive(Default)]
pub struct Nft {
    live: Option<LiveNft>,
}

impl Nft {
    fn live(&mut self) -> Result<&mut LiveNft, NftError> {
        let live = match self.live.take() {
            Some(live) => live,
            None => LiveNft::open()?,
        };
        Ok(self.live.insert(live))
    }
}

impl NftKernel for Nft {
    fn apply<'a>(&'a mut self, transaction: &'a Transaction) -> BoxFuture<'a, Result<(), NftError>> {
        async { self.live()?.apply(transaction).await }.boxed()
    }

    fn read<'a>(&'a mut self, table: &'a TableName) -> BoxFuture<'a, Result<Option<TableState>, NftError>> {
        async { self.live()?.read(table).await }.boxed()
    }

    fn rules(&mut self, table: &TableName) -> BoxFuture<'static, Result<Rules, NftError>> {
        match self.live() {
            Ok(live) => live.rules(table),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn rules_of<'a>(
        &'a mut self,
        table: &'a TableName,
        chains: &'a BTreeSet<ChainName>,
    ) -> BoxFuture<'a, Result<Rules, NftError>> {
        async { self.live()?.rules_of(table, chains).await }.boxed()
    }

    fn generation(&mut self) -> BoxFuture<'_, Result<Generation, NftError>> {
        async { self.live()?.generation().await }.boxed()
    }

    fn events(&mut self, table: &TableName) -> Result<BoxStream<'static, NftEvent>, NftError> {
        self.live()?.events(table)
    }
}
