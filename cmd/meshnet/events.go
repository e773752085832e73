package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

func (t *terminal) eventsVerb() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "show what changed and why",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with what changes", DisableDefaultText: true},
			&cli.StringFlag{Name: "since", Usage: "`TIME` like 2026-03-01T12:00:00Z, or how long ago, like 10m", DefaultText: "all that are kept"},
		},
		Action: verb(0, 0, words, t.events),
	}
}

func (t *terminal) events(c *cli.Context) error {
	var since time.Time
	if s := c.String("since"); s != "" {
		ago, err := time.ParseDuration(s)
		since = t.now().Add(-ago)
		if err != nil {
			if since, err = time.Parse(time.RFC3339, s); err != nil {
				return usage(c, "--since %s: want a time like 2026-03-01T12:00:00Z or a duration like 10m", s)
			}
		}
	}
	all, err := client(c).Events(c.Context, 0, false)
	if err != nil {
		return err
	}
	list := []api.Event{}
	last := uint64(0)
	for _, e := range all {
		last = e.Seq
		if !e.Time.Before(since) {
			list = append(list, e)
		}
	}
	if !c.Bool("follow") && c.Bool("json") {
		t.json(list)
		return nil
	}
	for {
		for _, e := range list {
			t.event(c, e)
		}
		if !c.Bool("follow") {
			return nil
		}
		if list, err = client(c).Events(c.Context, last, true); err != nil {
			if c.Context.Err() != nil {
				return nil // a person ended it
			}
			return err
		}
		if len(list) > 0 {
			last = list[len(list)-1].Seq
		}
	}
}

// event prints one event on one line.
func (t *terminal) event(c *cli.Context, e api.Event) {
	if c.Bool("json") {
		json.NewEncoder(t.out).Encode(e)
		return
	}
	line := fmt.Sprintf("%s  %-9s  %s", e.Time.Format(time.RFC3339), e.Kind, e.Subject)
	for _, s := range []string{e.Detail, e.Cause} {
		if s != "" {
			line += "  " + oneLine(s)
		}
	}
	fmt.Fprintln(t.out, line)
}
