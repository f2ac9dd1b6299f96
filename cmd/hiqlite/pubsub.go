package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/pubsub"
)

// messageReport is a line of "listen --json".
type messageReport struct {
	Index   uint64    `json:"index"`
	Channel string    `json:"channel"`
	Time    time.Time `json:"time"`
	Payload *string   `json:"payload,omitempty"`
	Base64  string    `json:"payload_base64,omitempty"` // of a payload that is not UTF-8
}

func listenCommand() *cobra.Command {
	var d database
	var asJSON bool
	var after uint64
	var count int
	cmd := &cobra.Command{
		Use:   "listen CHANNEL",
		Short: "Print the messages of a channel until it is interrupted",
		Long: `Prints the payload of each message of a channel on a line. A * at the end of CHANNEL
selects all channels that begin with the characters before it.

If messages were forgotten before they could be read, it says so on standard error
and goes on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return d.with(ctx, func(_ *sql.DB, client hiqlite.Client) error {
				var opts []pubsub.Option
				if cmd.Flags().Changed("after") {
					opts = append(opts, pubsub.After(after))
				}
				sub, err := pubsub.Listen(ctx, client, args[0], opts...)
				if err != nil {
					return err
				}
				defer sub.Close()
				return untilInterrupted(count, func() error {
					m, err := sub.Next(ctx)
					var lagged *pubsub.LaggedError
					if errors.As(err, &lagged) {
						report(cmd.ErrOrStderr(), err)
						return nil
					}
					if err != nil {
						return err
					}
					if !asJSON {
						_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", m.Payload)
						return err
					}
					r := messageReport{Index: m.Index, Channel: m.Channel, Time: m.Time.UTC()}
					r.Payload, r.Base64 = jsonText(m.Payload)
					return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
				})
			})
		},
	}
	d.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object with index, channel and time on each line")
	cmd.Flags().Uint64Var(&after, "after", 0, "begin after the message with this index; 0: with the first one that is still kept")
	cmd.Flags().IntVar(&count, "count", 0, "stop after so many messages; 0: never")
	return cmd
}

// maxPayload bounds, in bytes, what "notify CHANNEL -" reads; an entry of the log has
// no room for more.
const maxPayload = 8 << 20

func notifyCommand() *cobra.Command {
	var d database
	cmd := &cobra.Command{
		Use:   "notify CHANNEL PAYLOAD",
		Short: "Send a message to a channel, and print its index",
		Long:  "Sends a message to all who listen to a channel. PAYLOAD - reads it from standard input.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			payload, err := argument(cmd, args[1], maxPayload)
			if err != nil {
				return err
			}
			return d.with(cmd.Context(), func(_ *sql.DB, client hiqlite.Client) error {
				index, err := pubsub.Notify(cmd.Context(), client, args[0], payload)
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), index)
				}
				return err
			})
		},
	}
	d.flag(cmd)
	return cmd
}
