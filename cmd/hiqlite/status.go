package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
)

// statusReport is what "hiqlite status --json" prints.
type statusReport struct {
	NodeID        uint64         `json:"node_id"`
	Leader        uint64         `json:"leader"` // 0: none is known
	Term          uint64         `json:"term"`
	Applied       uint64         `json:"applied"`
	Commit        uint64         `json:"commit"`
	Lag           uint64         `json:"lag"` // committed entries that are not applied yet
	DatabaseBytes int64          `json:"database_bytes"`
	WALBytes      int64          `json:"wal_bytes"`
	Members       []memberReport `json:"members"`
	Shards        []shardReport  `json:"shards"`
	Hash          string         `json:"hash,omitempty"`
	HashIndex     uint64         `json:"hash_index,omitempty"`
}

type memberReport struct {
	ID       uint64 `json:"id"`
	RaftAddr string `json:"raft_addr,omitempty"`
	APIAddr  string `json:"api_addr,omitempty"`
	Leader   bool   `json:"leader"`
}

type shardReport struct {
	Name    string `json:"name"`
	Leader  uint64 `json:"leader"`
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"`
	Error   string `json:"error,omitempty"`
}

func statusCommand() *cobra.Command {
	d := database{mustExist: true}
	var asJSON, hash bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status [DSN]",
		Short: "Print the state of a node and of its cluster",
		Long: `Prints the state of a node, and of the cluster as that node sees it: the members,
the leader of each shard, how many committed entries the node has not applied yet,
and the sizes of its files. If there is no leader it prints what the node knows, and
returns exit code 4.

--hash adds a SHA-256 of all rows, and the index of the entry up to which they are
applied: at the same index all nodes have the same hash. It reads the whole database.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				d.dsn = args[0]
			}
			return d.with(cmd.Context(), func(_ *sql.DB, client hiqlite.Client) error {
				return printStatus(cmd.Context(), cmd.OutOrStdout(), client, wait, asJSON, hash)
			})
		},
	}
	d.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.Flags().BoolVar(&hash, "hash", false, "add a hash of all rows")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait for a leader")
	return cmd
}

func printStatus(ctx context.Context, out io.Writer, client hiqlite.Client, wait time.Duration, asJSON, hash bool) error {
	waiting, cancel := context.WithTimeout(ctx, wait)
	notReady := client.Ready(waiting)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	r := newStatusReport(s)
	if hash {
		sum, index, err := client.Hash(ctx)
		if err != nil {
			return err
		}
		r.Hash, r.HashIndex = hex.EncodeToString(sum[:]), index
	}
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		err = r.print(out)
	}
	if err == nil && notReady != nil {
		err = notReady
	}
	return err
}

func newStatusReport(s hiqlite.Status) *statusReport {
	r := &statusReport{
		NodeID: s.NodeID, Leader: s.Leader, Term: s.Term, Applied: s.Applied, Commit: s.Commit,
		DatabaseBytes: s.DatabaseBytes, WALBytes: s.WALBytes,
	}
	if s.Commit > s.Applied {
		r.Lag = s.Commit - s.Applied
	}
	for _, m := range s.Members {
		r.Members = append(r.Members, memberReport{m.ID, m.RaftAddr, m.APIAddr, m.ID == s.Leader})
	}
	for _, shard := range s.Shards {
		r.Shards = append(r.Shards, shardReport(shard))
	}
	return r
}

func (r *statusReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	leader := "none"
	if r.Leader != 0 {
		leader = fmt.Sprint("node ", r.Leader)
	}
	fmt.Fprintf(w, "node\t%d\nleader\t%s, term %d\napplied\t%d of %d entries (lag %d)\ndatabase\t%s, and %s of write-ahead log\n",
		r.NodeID, leader, r.Term, r.Applied, r.Commit, r.Lag, bytesText(r.DatabaseBytes), bytesText(r.WALBytes))
	if r.Hash != "" {
		fmt.Fprintf(w, "hash\t%s at entry %d\n", r.Hash, r.HashIndex)
	}
	fmt.Fprintf(w, "\nmember\traft\tapi\t\n")
	for _, m := range r.Members {
		role := ""
		if m.Leader {
			role = "leader"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", m.ID, dash(m.RaftAddr), dash(m.APIAddr), role)
	}
	fmt.Fprintf(w, "\nshard\tleader\tterm\tapplied\t\n")
	for _, s := range r.Shards {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", s.Name, s.Leader, s.Term, s.Applied, s.Error)
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// bytesText returns a size for people, as in 12.3 MiB.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	x, unit := float64(n)/(1<<10), "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if x < 1<<10 {
			break
		}
		x, unit = x/(1<<10), next
	}
	return fmt.Sprintf("%.1f %s", x, unit)
}
