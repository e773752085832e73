package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"meshnet/state"
)

// rowMax bounds one row: 100,000 endpoints took a tenth of it.
const rowMax = 3 * time.Minute

func main() {
	child := flag.Bool("child", false, "measure one row: for the command's own use")
	rows := flag.String("rows", "1/10,1000/10,10000/10,100000/10,1000/100,1000/1000,100000/1000", "endpoints/peers of each row")
	passes := flag.Int("passes", 3, "how often all rows are measured; medians are printed")
	changes := flag.Int("changes", 200, "changes measured in a row, as many additions as removals")
	doc := flag.String("doc", "", "also write the table into this file, between its marks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *child {
		exitOn(measureChild(ctx))
		return
	}
	exitOn(run(ctx, *rows, *passes, *changes, *doc))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		os.Exit(1)
	}
}

// job is one row, as the child is told.
type job struct {
	Transport        state.Transport
	Endpoints, Peers int
	Changes          int
}

// run measures all rows and prints the table. A row that failed is named in it.
func run(ctx context.Context, rows string, passes, changes int, doc string) error {
	if os.Getuid() != 0 {
		return errors.New("must be root")
	}
	var jobs []job
	for _, row := range strings.Split(rows, ",") {
		endpoints, peers, _ := strings.Cut(row, "/")
		e, err := strconv.Atoi(endpoints)
		p, err2 := strconv.Atoi(peers)
		if err != nil || err2 != nil || e < 1 || p < 1 || p > peersMax {
			return fmt.Errorf("row %q: want endpoints/peers, like 1000/10, with at most %d peers", row, peersMax)
		}
		for _, t := range []state.Transport{state.OVSUserspace, state.KernelVXLAN} {
			jobs = append(jobs, job{t, e, p, changes})
		}
	}
	began, results := time.Now(), make([][]result, len(jobs))
	failures := make([]error, len(jobs))
	for pass := range passes {
		for i, j := range jobs {
			r, err := spawn(ctx, j)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failures[i] = err
				fmt.Fprintf(os.Stderr, "pass %d: %v\n", pass+1, err)
				continue
			}
			fmt.Fprintf(os.Stderr, "pass %d: %s\n", pass+1, r)
			results[i] = append(results[i], r)
		}
	}
	text := table(jobs, results, failures, passes, time.Since(began))
	fmt.Print(text)
	if doc != "" {
		if err := replaceTable(doc, text); err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

// spawn measures one row in a process of its own, which is the first of its process namespace: with it all
// that it started ends.
func spawn(ctx context.Context, j job) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, rowMax)
	defer cancel()
	b, err := json.Marshal(j)
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-child")
	cmd.Stdin = bytes.NewReader(b)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	out, err := cmd.Output()
	r := result{job: j}
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", j, errors.Join(err, ctx.Err()), strings.TrimSpace(errs.String()))
	}
	return r, nil
}

func (j job) String() string {
	return fmt.Sprintf("%s, %d endpoints, %d peers", j.Transport, j.Endpoints, j.Peers)
}
