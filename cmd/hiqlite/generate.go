package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite/internal/settings"
)

func generateConfigCommand() *cobra.Command {
	var secretsFile string
	cmd := &cobra.Command{
		Use:   "generate-config [FILE]",
		Short: "Write a file of settings with new secrets",
		Long: `Writes a complete file of settings, each with its meaning, and with new secrets.
Only the owner of the file can read it. An existing file is never overwritten. All
nodes of a cluster must have the same secrets, so copy the file instead of making
one for each node. FILE is hiqlite.toml if it is not given; - prints the settings.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "hiqlite.toml"
			if len(args) > 0 {
				name = args[0]
			}
			return generateConfig(cmd, name, secretsFile)
		},
	}
	cmd.Flags().StringVar(&secretsFile, "secrets", "", "write the secrets to this file, apart from the other settings")
	return cmd
}

func generateConfig(cmd *cobra.Command, name, secretsFile string) (err error) {
	var main, secrets io.Writer = cmd.OutOrStdout(), nil
	var made []string
	defer func() {
		if err != nil {
			for _, name := range made {
				os.Remove(name)
			}
		}
	}()
	create := func(name string) (*os.File, error) {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%s exists, and is not overwritten", name)
		}
		if err == nil {
			made = append(made, name)
		}
		return f, err
	}
	path := secretsFile
	if secretsFile != "" {
		if path, err = filepath.Abs(secretsFile); err != nil {
			return err
		}
		f, err := create(secretsFile)
		if err != nil {
			return err
		}
		defer f.Close()
		secrets = f
	}
	if name != "-" {
		f, err := create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		main = f
	}
	if err := settings.Generate(main, secrets, path); err != nil {
		return err
	}
	if name != "-" {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s is written. Set nodes in it for a cluster, and start: hiqlite serve --config %s\n", name, name)
	}
	return nil
}
