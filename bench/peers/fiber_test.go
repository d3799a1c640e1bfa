package peers

import (
	"context"
	"testing"

	"github.com/gofiber/fiber/v2"
)

// BenchmarkFiberRoute is what fiber's routing costs in the times of "gofiber
// middleware": a route without the middleware, whose handler answers at once.
func BenchmarkFiberRoute(b *testing.B) {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	call := NewCall()
	answer := call.Answer(1)
	app.Post(fiberPath, func(c *fiber.Ctx) error { return c.SendString(answer) })
	handle := app.Handler()
	b.ReportAllocs()
	for b.Loop() {
		if got, err := fiberRequest(context.Background(), handle, call); err != nil || got != answer {
			b.Fatal(got, err)
		}
	}
}
