package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// engines are the dependencies that decide what a replica computes and what its log
// looks like.
var engines = []string{"modernc.org/sqlite", "github.com/lni/dragonboat/v4"}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of hiqlite, Go, SQLite's driver and Raft",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return fmt.Errorf("this binary was built without module information")
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "hiqlite %s\n%s\n", info.Main.Version, info.GoVersion)
			for _, path := range engines {
				for _, dep := range info.Deps {
					if dep.Path == path {
						fmt.Fprintf(out, "%s %s\n", path, dep.Version)
					}
				}
			}
			return nil
		},
	}
}
