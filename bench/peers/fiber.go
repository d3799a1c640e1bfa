package peers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/idempotency"
	"github.com/gofiber/storage/postgres/v3"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/valyala/fasthttp"
)

func init() {
	register(Peer{
		Name:    "gofiber middleware",
		About:   "gofiber's middleware/idempotency (fiber v2.52.15) with its storage/postgres v3.0.0 on the pool of the business transaction: look up, lock in memory, look up, handler, insert the response. The app's handler is called directly, without a socket.",
		Prepare: prepareFiber,
		Open:    openFiber,
	})
}

// As its author would review it:
//
//   - fiber v2, because storage/postgres v3.0.0 has not the methods with a context
//     that the middleware of fiber v3 asks its storage for; the middleware's steps
//     are the same in both.
//   - app.Handler is called with a request made in memory: routing and middleware
//     run as they would, without a socket or a parser of HTTP. BenchmarkFiberRoute
//     measures what that costs without the middleware. Nothing is subtracted.
//   - The storage shares the pool of the handler, and its table is made beforehand.
//   - Lifetime is 24 h, as everywhere here; its default is half an hour. The key is
//     a UUID, as the default KeyHeaderValidate demands.
//   - The Locker is the default, of this process only. One over several processes
//     would be the application's own: the module has none.
//   - The handler cannot have the response stored in its transaction: the
//     middleware stores it after the handler has returned.
//   - The middleware does not compare requests, and its keys have no scope.

const fiberPath = "/charges"

// A fiberInput is what a handler would read from its request.
type fiberInput struct {
	ctx  context.Context
	call *Call
}

type fiberInputKey struct{}

type fiberApp struct {
	storage *postgres.Storage
	handle  fasthttp.RequestHandler
}

func prepareFiber(ctx context.Context, env Env) error {
	pool, err := env.Pool(ctx)
	if err != nil {
		return err
	}
	storage, err := fiberStorage(pool)
	if err != nil {
		return err
	}
	return storage.Close()
}

// fiberStorage panics no more: the pool is closed where it fails.
func fiberStorage(pool *pgxpool.Pool) (storage *postgres.Storage, err error) {
	defer func() {
		if p := recover(); p != nil {
			pool.Close()
			err = fmt.Errorf("storage/postgres: %v", p)
		}
	}()
	return postgres.New(postgres.Config{DB: pool}), nil
}

func openFiber(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	storage, err := fiberStorage(pool)
	if err != nil {
		return nil, err
	}
	middleware := idempotency.New(idempotency.Config{Storage: storage, Lifetime: 24 * time.Hour})
	return fiberApp{storage, fiberHandler(pool, middleware)}, nil
}

// fiberHandler is the app: what a user of fiber writes.
func fiberHandler(pool *pgxpool.Pool, middleware ...fiber.Handler) fasthttp.RequestHandler {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Post(fiberPath, append(middleware, func(c *fiber.Ctx) error {
		in := c.Context().UserValue(fiberInputKey{}).(fiberInput)
		var answer string
		err := pgx.BeginFunc(in.ctx, pool, func(tx pgx.Tx) (err error) {
			answer, err = in.call.Write(in.ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		in.call.Written(in.ctx)
		return c.SendString(answer)
	})...)
	return app.Handler()
}

func (f fiberApp) Close() { f.storage.Close() } // and the pool

func (f fiberApp) Do(ctx context.Context, call *Call) (string, error) {
	return fiberRequest(ctx, f.handle, call)
}

// fiberRequest is one request to the app.
func fiberRequest(ctx context.Context, handle fasthttp.RequestHandler, call *Call) (string, error) {
	var request fasthttp.Request
	request.Header.SetMethod(fiber.MethodPost)
	request.SetRequestURI(fiberPath)
	request.Header.Set("X-Idempotency-Key", call.ID)
	request.SetBodyRaw(call.Body)
	var c fasthttp.RequestCtx
	c.Init(&request, nil, nil)
	c.SetUserValue(fiberInputKey{}, fiberInput{ctx, call})
	handle(&c)
	body := string(c.Response.Body())
	if status := c.Response.StatusCode(); status != fiber.StatusOK {
		return "", errors.New(body)
	}
	return body, nil
}
