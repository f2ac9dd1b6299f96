package main

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/kv"
)

func kvCommand() *cobra.Command {
	var d database
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Read and write the entries of buckets",
		Long: `Reads and writes the entries of buckets as they are stored. Programs store JSON
unless they choose another codec: for these write '"text"', with its quotation marks,
and not text.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError(errors.New("give one of get, put, delete, keys and watch; see hiqlite kv --help"))
		},
	}
	d.flag(cmd)
	cmd.AddCommand(kvGetCommand(&d), kvPutCommand(&d), kvDeleteCommand(&d), kvKeysCommand(&d), kvWatchCommand(&d))
	return cmd
}

// withBucket calls f with a bucket.
func (d *database) withBucket(cmd *cobra.Command, name string, f func(ctx context.Context, b *kv.Bucket[[]byte]) error) error {
	return d.with(cmd.Context(), func(_ *sql.DB, client hiqlite.Client) error {
		b, err := kv.New[[]byte](client, name, kv.WithCodec(kv.Bytes))
		if err != nil {
			return usageError(err)
		}
		return f(cmd.Context(), b)
	})
}

func kvGetCommand(d *database) *cobra.Command {
	return &cobra.Command{
		Use:   "get BUCKET KEY",
		Short: "Print the value of a key; exit code 3 if there is none",
		Long:  "Prints the value of a key as the whole cluster has it, with a line feed after it if that goes to a terminal.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.withBucket(cmd, args[0], func(ctx context.Context, b *kv.Bucket[[]byte]) error {
				v, ok, err := b.Get(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), args[1])
				if err != nil {
					return err
				}
				if !ok {
					return &codedError{exitAbsent, fmt.Errorf("bucket %q has no key %q", args[0], args[1])}
				}
				return printPayload(cmd.OutOrStdout(), v)
			})
		},
	}
}

// printPayload prints bytes unchanged, and on a terminal a line feed after them.
func printPayload(w io.Writer, b []byte) error {
	if isTerminal(w) {
		b = append(b, '\n')
	}
	_, err := w.Write(b)
	return err
}

func kvPutCommand(d *database) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "put BUCKET KEY VALUE",
		Short: "Set the value of a key; VALUE - reads it from standard input",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := argument(cmd, args[2], kv.MaxValue)
			if err != nil {
				return err
			}
			return d.withBucket(cmd, args[0], func(ctx context.Context, b *kv.Bucket[[]byte]) error {
				if cmd.Flags().Changed("ttl") {
					return b.PutTTL(ctx, args[1], value, ttl)
				}
				return b.Put(ctx, args[1], value)
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "remove the entry after this time, such as 30m")
	return cmd
}

// argument returns an argument, or standard input if it is "-".
func argument(cmd *cobra.Command, arg string, most int64) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("standard input has more than %d bytes", most)
	}
	return b, err
}

func kvDeleteCommand(d *database) *cobra.Command {
	return &cobra.Command{
		Use:   "delete BUCKET KEY",
		Short: "Remove a key; exit code 3 if there is none",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.withBucket(cmd, args[0], func(ctx context.Context, b *kv.Bucket[[]byte]) error {
				had, err := b.Delete(ctx, args[1])
				if err == nil && !had {
					err = &codedError{exitAbsent, fmt.Errorf("bucket %q has no key %q", args[0], args[1])}
				}
				return err
			})
		},
	}
}

func kvKeysCommand(d *database) *cobra.Command {
	return &cobra.Command{
		Use:   "keys BUCKET [PREFIX]",
		Short: "Print the keys of a bucket, one on each line",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 1 {
				prefix = args[1]
			}
			return d.withBucket(cmd, args[0], func(ctx context.Context, b *kv.Bucket[[]byte]) error {
				keys, err := b.Keys(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), prefix)
				for _, k := range keys {
					fmt.Fprintln(cmd.OutOrStdout(), k)
				}
				return err
			})
		},
	}
}

// eventReport is a line of "kv watch --json".
type eventReport struct {
	Kind    string  `json:"kind"`
	Key     string  `json:"key,omitempty"`
	Version uint64  `json:"version"`
	Value   *string `json:"value,omitempty"`
	Base64  string  `json:"value_base64,omitempty"` // of a value that is not UTF-8
}

func kvWatchCommand(d *database) *cobra.Command {
	var asJSON bool
	var count int
	cmd := &cobra.Command{
		Use:   "watch BUCKET [PREFIX]",
		Short: "Print the changes of a bucket until it is interrupted",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 1 {
				prefix = args[1]
			}
			return d.withBucket(cmd, args[0], func(ctx context.Context, b *kv.Bucket[[]byte]) error {
				w, err := b.Watch(ctx, prefix)
				if err != nil {
					return err
				}
				defer w.Close()
				return untilInterrupted(count, func() error {
					e, err := w.Next(ctx)
					if err != nil {
						return err
					}
					return printEvent(cmd.OutOrStdout(), e, asJSON)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object on each line")
	cmd.Flags().IntVar(&count, "count", 0, "stop after so many changes; 0: never")
	return cmd
}

// untilInterrupted calls f until it fails, or so many times if count is not 0. An
// interruption is the normal end, not an error.
func untilInterrupted(count int, f func() error) error {
	for i := 0; count == 0 || i < count; i++ {
		if err := f(); errors.Is(err, context.Canceled) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

func printEvent(out io.Writer, e kv.Event[[]byte], asJSON bool) error {
	if !asJSON {
		line := fmt.Sprintf("%s %s", e.Kind, e.Key)
		if e.Kind == kv.Put {
			line += " " + string(e.Value)
		}
		_, err := fmt.Fprintln(out, line)
		return err
	}
	r := eventReport{Kind: e.Kind.String(), Key: e.Key, Version: e.Version}
	if e.Kind == kv.Put {
		r.Value, r.Base64 = jsonText(e.Value)
	}
	return json.NewEncoder(out).Encode(r)
}

// jsonText returns bytes as a text if they are UTF-8, and otherwise in base64.
func jsonText(b []byte) (text *string, encoded string) {
	if utf8.Valid(b) {
		s := string(b)
		return &s, ""
	}
	return nil, base64.StdEncoding.EncodeToString(b)
}
