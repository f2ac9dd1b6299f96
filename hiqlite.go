// Package hiqlite is a replicated SQLite for database/sql: every node of a
// cluster holds the whole database, writes are acknowledged when a majority of
// the nodes has them on disk, and reads are reads of the local SQLite.
//
// Most programs need only the driver:
//
//	import _ "github.com/hiqlite/hiqlite/driver"
//
//	db, err := sql.Open("hiqlite", "data?node_id=1&secret_file=secret&nodes=1=a:8200/a:8100,2=b:8200/b:8100,3=c:8200/c:8100")
//
// This package is for programs that start and stop the node themselves ([Open]), and
// it has what database/sql does not have: [Batch], [RunTx], [Migrate],
// [WithConsistency] and the errors. The packages kv, lock and pubsub work with what
// [From] and [Open] return.
//
// # Guarantees
//
//   - A write that returned without an error is on the disks of a majority of the
//     nodes.
//   - It was applied exactly once, even if nodes died meanwhile.
//   - Reads on the node through which it was written see it. Reads on other nodes see
//     it soon, and [Linearizable] reads see it at once.
//   - A write that returned an error was not applied and never will be, unless the
//     error is [ErrOutcomeUnknown]. (INSERT OR FAIL and RAISE(FAIL) keep the rows
//     before the failing one, as SQLite defines them.)
//   - All nodes hold the same rows, whatever SQL was run: all nodes compute the same
//     values of random() and datetime('now').
//   - Nobody can guess the values of random() and randomblob() in a write from other
//     values. But whoever can read the log, or a backup of it, can compute them,
//     because the log has their seed of 256 bits. So make secrets such as session
//     tokens in the program with crypto/rand and bind them, instead of using
//     hex(randomblob(16)). The random numbers of reads are stored nowhere.
//   - [database/sql.DB.Ping] says that the node runs, not that there is a leader.
//     Reads need no leader, and a health probe that calls Ping does not restart a node
//     because the other nodes are missing. Without a leader, writes fail with
//     [ErrNoLeader] when their context or [Config].Timeout ends. [Node.Ready] and a [Linearizable] read
//     check that there is one.
//
// # Long writes and contexts
//
// A statement does not start if its context has ended. That also holds on a
// [database/sql.Conn] and after BEGIN as a text; only ROLLBACK runs nevertheless.
//
// A write that is in the log cannot be withdrawn, and a long write keeps all others
// waiting. So a write first gets 12.5 million steps of SQLite's virtual machine, which
// take about a second. If they are not enough, all nodes undo the write, other writes
// are applied, and the write is tried again with four times as many steps, up to
// [Config].MaxSteps (200 million; max_steps in the DSN), as long as its context lasts.
// A runaway write therefore ends with its last attempt. Statements of a transaction
// run only on its own node until Commit, and end with their context.
//
// # Transactions
//
// [database/sql.DB.BeginTx] begins a real transaction: its reads see its writes, its
// errors occur where they happen, and it is serializable. All isolation levels of
// database/sql are accepted, because serializable satisfies each of them. With
// sql.LevelLinearizable, a transaction that is read-only or deferred also sees
// everything that was acknowledged anywhere before its first read. Other transactions
// always do. BEGIN, COMMIT, ROLLBACK and savepoints as SQL texts on one connection
// have the same effects.
//
//   - The cluster has one writer at a time, as SQLite has. Other transactions, and
//     plain writes too, wait until it has finished. Across all nodes they write in the
//     order in which they asked for it. They wait for at most busy_timeout, and then
//     fail with SQLITE_BUSY. So keep transactions short.
//   - Nobody else sees any write of a transaction before its Commit, which may be seen
//     a moment before it returns. Commit is one write: it is applied once and
//     completely, or not at all.
//   - A transaction survives the loss of the leader. If its own node is unreachable
//     for [Config].LeaseTTL while others wait, the others go on and Commit returns
//     [ErrTxExpired]: nothing was applied. [RunTx] runs the transaction again.
//   - Commit returns [ErrOutcomeUnknown] only if one of three things happened after it
//     proposed the commit: the context of BeginTx ended, there was no majority for
//     [Config].Timeout, or the node was closed. The loss of a minority of the nodes
//     only delays a commit.
//   - All writes of a transaction together must fit into about 8 MiB. The statement
//     that exceeds them fails with [ErrTooLarge].
//   - BEGIN as a text belongs to its connection, so run it and the statements after it
//     on one sql.Conn. While the transaction is open there, it blocks other writers
//     until tx_timeout. It is rolled back when the connection goes back to its pool:
//     by sql.Conn.Close, and at once after sql.DB.Exec("BEGIN"), which therefore has
//     no effect, so that the COMMIT after it fails.
//   - The statements of a transaction that has expired fail with ErrTxExpired until
//     the transaction is ended: by ROLLBACK, by COMMIT, by the end of its sql.Tx, or
//     by the return of its connection to the pool. If BEGIN as a text began it, and a
//     statement has returned the error, the next BEGIN ends it too.
//   - With sql.TxOptions.ReadOnly a transaction is a snapshot of this node's rows. It
//     neither waits for writers nor blocks them, and takes microseconds to begin, not
//     a round trip. Use it for everything that only reads: a default transaction
//     blocks other writers from its beginning, even if it never writes, because
//     nothing may change between its reads and its first write. An open snapshot keeps
//     SQLite's write-ahead log from being emptied. If that grows beyond 1 GiB, the
//     oldest such snapshot is ended.
//
// # SQLite
//
// Values, types, error texts and codes are those of modernc.org/sqlite, with these
// exceptions:
//
//   - Foreign keys are enforced unless a connection switches them off.
//   - A wrong number of arguments is an error, in scripts too. Named arguments that a
//     statement does not have are ignored.
//   - CREATE TABLE ... AS is refused if its SELECT returns more than five columns
//     with the same name, as the * of a wide join can: SQLite gives the further ones
//     random names.
//   - The rows that R-Tree and FTS5 insert into their own tables do not change
//     last_insert_rowid().
//   - A script of several statements is atomic, unless it says BEGIN or COMMIT
//     itself. If such a script fails, the transaction that it has begun is rolled back.
//   - A script has a result set for each of its statements that has columns, in the
//     order of the statements: see [sql.Rows.NextResultSet]. QueryRow reads the first
//     result set; modernc.org/sqlite returns only that of the last statement. A PRAGMA
//     that sets something has no result set in a script. A script that does more than
//     read runs to its end before its caller gets the first row. A script that only
//     reads runs each statement when its result set is reached: NextResultSet returns
//     the errors of later statements, and they do not run if the rows are closed
//     before. All statements of such a script see the same rows, unless the connection
//     has TEMP objects. In a transaction they see what the transaction has written
//     between them.
//   - After OR ROLLBACK, RAISE(ROLLBACK) or an interrupted write the transaction is
//     over. Its statements fail until ROLLBACK, COMMIT, another BEGIN or the end of the
//     sql.Tx; SQLite would run each of them outside of a transaction.
//   - A statement that fails in a transaction has changed nothing. SQLite keeps what
//     the statement wrote before an aggregate overflowed, a virtual table refused its
//     argument (for example json_each of a text that is not JSON) or a STRICT column
//     refused its value.
//   - After PRAGMA defer_foreign_keys=OFF, foreign keys that are violated already are
//     still checked at COMMIT.
//   - Times are written in UTC, in one layout whose order is the order of the times,
//     and not as [time.Time.String] writes them; see ConnConfig.TimeFormat. All layouts
//     that SQLite and its drivers write can be read, also in columns declared as
//     DATETIME(6) or TIMESTAMP WITH TIME ZONE. CURRENT_TIMESTAMP writes no zone, so
//     compare it by datetime(column). Expressions such as max(begins) have no declared
//     type, so their texts are returned as strings unless ConnConfig.TextToTime is set.
//   - The scan type of a NULL, and of a column of a result without rows, follows the
//     declared type. Whether a column can be NULL is not known.
//   - 'localtime' and 'utc' use the zone of the cluster, which is UTC unless
//     Config.Timezone sets another one. They never use the zone of the process.
//   - An empty blob is not nil.
//   - LastInsertId is the rowid of the row that the statement itself has inserted or,
//     if it is an upsert, updated. If it did neither, LastInsertId is 0, where SQLite
//     repeats the rowid of an earlier statement, which may be another table's.
//     last_insert_rowid() has SQLite's value.
//   - LastInsertId and RowsAffected of a statement that changes the schema are 0.
//   - A statement that fails does not change the values of changes() and
//     last_insert_rowid().
//   - PRAGMAs that tune a connection are accepted and have no effect; journal_mode is
//     always wal. busy_timeout, 10000 by default, bounds the wait for transactions.
//     PRAGMAs that change what statements mean are sent to all nodes with each
//     statement of the connection. docs/sql.md has a table of all PRAGMAs.
//   - PRAGMA foreign_keys takes effect inside a transaction too, and only until the
//     transaction ends.
//   - PRAGMA writable_schema allows the inserts that dumps of full-text tables and
//     R-Trees contain, and no other change of sqlite_schema.
//   - These are refused: ATTACH, TEMP virtual tables, load_extension, PRAGMA
//     count_changes, schema_version and encoding, texts with a NUL, the rowid 2^63-1,
//     and writes that read what differs between nodes: dbstat, sqlite_offset(), page
//     counts and the table sqlite_hiqlite, in which a node keeps its applied index.
//
// TEMP tables, views, triggers and indexes belong to one connection of the pool, as
// with every driver of SQLite. They live until the connection is closed, and the pool
// decides when that is. So run the statements that use them on one sql.Conn or in one
// transaction, and drop them at the end. They are kept in memory, are not replicated,
// and take at most 4 MiB. Statements and read-only transactions that change nothing but
// TEMP objects run on this node alone and wait for no other writer. A write to ordinary
// tables that uses TEMP objects, or fires a TEMP trigger, is a transaction that sends
// all TEMP objects of the connection to all nodes, so keep them small then. Changes of
// TEMP objects in a transaction are committed and rolled back with it. After
// [ErrOutcomeUnknown] they are as before the transaction.
//
// X REGEXP Y uses Go's package regexp. [Config].Functions and Collations add the
// program's own functions, aggregates, window functions and collations: see [Function].
//
// All nodes compute the same values only if they have the same architecture. Do not mix
// amd64 and arm64 in a cluster: the last bits of transcendental functions may differ.
//
// Reading the source: config.go, node.go, conn.go, stmt.go, tx.go, rows.go, batch.go
// and value.go are the types behind database/sql, internal/node is the runtime behind
// them, and docs/ARCHITECTURE.md leads through all packages.
package hiqlite
