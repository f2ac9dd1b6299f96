package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/cluster/raftlog"
)

func logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Check or print the Raft log of a node that is stopped",
		Long: `Reads the Raft log of a node that is stopped, and changes nothing. FOLDER is the data
folder of the node, or the folder of the log in it (raft/log).`,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "verify FOLDER",
		Short: "Check all records of a log",
		Long: `Reads all records of a log, checks their checksums and whether entries are missing,
and prints what the log has. If the log is damaged, it says where, with exit code 1.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectLog(cmd.OutOrStdout(), args[0], false)
		},
	}, &cobra.Command{
		Use:   "dump FOLDER",
		Short: "Print all records of a log",
		Long: `Prints one line for each record of a log, up to the end or to the first damaged one,
and then what "hiqlite log verify" prints. It does not print what entries hold.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectLog(cmd.OutOrStdout(), args[0], true)
		},
	})
	return cmd
}

// inspectLog prints what a log has, and its records if dump is set.
func inspectLog(out io.Writer, path string, dump bool) error {
	dir, err := findLog(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	var visit func(raftlog.Record)
	if dump {
		visit = func(r raftlog.Record) { printRecord(w, r) }
	}
	sum, err := raftlog.Inspect(dir, visit)
	if err != nil {
		return errors.Join(w.Flush(), fmt.Errorf("the Raft log in %s: %w", dir, err))
	}
	printLogSummary(w, sum)
	return w.Flush()
}

// findLog returns the folder of the log in a data folder, a Raft folder or a folder
// of a log. The node must be stopped.
func findLog(path string) (string, error) {
	for _, raft := range []string{filepath.Join(path, "raft"), path, filepath.Dir(path)} {
		dir := filepath.Join(raft, "log")
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		if by := cluster.InUse(raft); by != "" {
			return "", fmt.Errorf("%s is open in %s: stop the node first", raft, by)
		}
		return dir, nil
	}
	return "", fmt.Errorf("there is no Raft log in %s: name the data folder of a node", path)
}

func printRecord(w io.Writer, r raftlog.Record) {
	fmt.Fprintf(w, "%s %8d %8d  %-11s", r.Segment, r.Offset, r.Size, r.Kind)
	if r.Shard != 0 {
		fmt.Fprintf(w, " shard %d replica %d", r.Shard, r.Replica)
	}
	if r.Term != 0 {
		fmt.Fprintf(w, ", term %d vote %d commit %d", r.Term, r.Vote, r.Commit)
	}
	if r.Snapshot != 0 {
		fmt.Fprintf(w, ", snapshot %d", r.Snapshot)
	}
	if r.Last != 0 {
		fmt.Fprintf(w, ", entries %d to %d", r.First, r.Last)
	}
	if r.Index != 0 {
		fmt.Fprintf(w, " %d", r.Index)
	}
	fmt.Fprintln(w)
}

func printLogSummary(w io.Writer, sum raftlog.Summary) {
	ended := "it was not closed: the program was killed, or runs"
	if sum.Closed {
		ended = "it was closed"
	}
	fmt.Fprintf(w, "%d segments, %d bytes, of which %d are needed; %s\n", sum.Segments, sum.Bytes, sum.Needed, ended)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "shard\treplica\tfirst entry\tlast entry\tterm\tvote\tcommit\tsnapshot\t")
	for _, r := range sum.Replicas {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.Shard, r.Replica, r.First, r.Last, r.Term, r.Vote, r.Commit, r.Snapshot)
	}
	t.Flush()
}
