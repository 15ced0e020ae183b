"""Every private or undocumented name of kombu and Celery that this project relies on: what it must be, where it is
used, and why. An upgrade that changes one fails here with a sentence, and not in the field; see docs/celery.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import celery
import kombu
import pytest
from celery import Celery, Task, beat, bootsteps
from celery.app.events import Events
from celery.bin.beat import beat as start_beat
from celery.bin.worker import worker as start_worker
from celery.events.dispatcher import EventDispatcher
from celery.events.state import State
from celery.events.state import Task as TaskState
from celery.utils.imports import symbol_by_name
from celery.worker import WorkController, control, pidbox, state
from celery.worker.consumer import Consumer
from celery.worker.consumer import events as consumer_events
from kombu import Connection, Producer
from kombu.message import Message
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import QoS
from kombu.utils.functional import LRUCache


@dataclass(frozen=True, slots=True)
class Subjects:
    """Objects as kombu and Celery make them, without the project's own classes."""

    channel: Any
    """kombu's channel to a real Redis."""
    dispatcher: Any
    """Celery's sender of events."""


@dataclass(frozen=True, slots=True)
class Use:
    name: str
    where: str
    why: str
    """Completes "… uses it to"."""
    holds: Callable[[Subjects], bool]


def takes(function: Callable[..., Any], *parameters: str) -> bool:
    """Whether the function's first parameters have these names."""
    return list(inspect.signature(function).parameters)[: len(parameters)] == list(parameters)


def has(function: Callable[..., Any], *parameters: str) -> bool:
    """Whether the function has parameters of these names anywhere."""
    return set(parameters) <= inspect.signature(function).parameters.keys()


def mentions(function: Callable[..., Any], code: str) -> bool:
    """Whether the function's source contains `code`, white space aside."""
    return "".join(code.split()) in "".join(inspect.getsource(function).split())


CHANNEL = "the transport's Channel"
DISPATCHER = "the EventDispatcher"
JOB_MESSAGE = "the jobs' tasks and their JobMessage"

USES = [
    # The transport: BLMPOP for BRPOP, and no message can end the worker.
    Use(
        "kombu.transport.redis.Channel._brpop_start(timeout)",
        CHANNEL,
        "send BLMPOP where kombu sends BRPOP; the poller has to call it",
        lambda _: (
            takes(kombu_redis.Channel._brpop_start, "self", "timeout")
            and mentions(kombu_redis.MultiChannelPoller._register_BRPOP, "channel._brpop_start()")
        ),
    ),
    Use(
        "kombu.transport.redis.Channel._brpop_read(**options)",
        CHANNEL,
        "read the answer to BLMPOP; kombu has to find it under `BRPOP` in `handlers`",
        lambda on: on.channel.handlers["BRPOP"] == on.channel._brpop_read,
    ),
    Use(
        "kombu.transport.redis.Channel._queue_cycle.consume(n), .rotate(queue)",
        CHANNEL,
        "ask for the queues in their turn",
        lambda on: (
            takes(on.channel._queue_cycle.consume, "n")
            and len(inspect.signature(on.channel._queue_cycle.rotate).parameters) == 1
        ),
    ),
    Use(
        "kombu.transport.redis.Channel.active_queues, .priority_steps, .brpop_timeout",
        CHANNEL,
        "know what to ask for, and for how long",
        lambda on: (
            len(on.channel.active_queues) == 0 and len(on.channel.priority_steps) > 1 and on.channel.brpop_timeout > 0
        ),
    ),
    Use(
        "kombu.transport.redis.Channel._q_for_pri(queue, priority), .sep",
        f"{CHANNEL}, priority_keys",
        "name the Redis list of a queue and a priority; threads that take shards read these lists themselves",
        lambda on: (
            on.channel._q_for_pri("q", 0) == "q" and on.channel._q_for_pri("q", 3) == f"q{kombu_redis.Channel.sep}3"
        ),
    ),
    Use(
        "kombu.transport.redis.Channel.qos.can_consume_max_estimate()",
        CHANNEL,
        "fetch as many messages at once as the worker has places for",
        lambda on: on.channel.qos.can_consume_max_estimate() is None and takes(QoS.can_consume_max_estimate, "self"),
    ),
    Use(
        "kombu.transport.redis.Channel._in_poll, ._brpop_sent_at",
        CHANNEL,
        "tell kombu that a blocking command is under way, so that it sends none meanwhile, and since when",
        lambda on: (
            not on.channel._in_poll
            and mentions(kombu_redis.Channel._brpop_start, "self._in_poll = self.client.connection")
            and mentions(kombu_redis.Channel._brpop_start, "self._brpop_sent_at = monotonic()")
        ),
    ),
    Use(
        "kombu.transport.redis.Channel._flush_brpop_reauth()",
        CHANNEL,
        "send credentials that were renewed while it waited for messages",
        lambda on: on.channel._flush_brpop_reauth() is None,
    ),
    Use(
        "kombu.transport.redis.Transport._deliver(message, queue)",
        CHANNEL,
        "hand a message to its consumer",
        lambda on: takes(on.channel.connection._deliver, "message", "queue"),
    ),
    Use(
        "kombu.transport.redis.Channel.connection_errors, .client.parse_response(connection, command)",
        CHANNEL,
        "notice that Redis went away while it waited for messages",
        lambda on: (
            bool(on.channel.connection_errors) and takes(on.channel.client.parse_response, "connection", "command_name")
        ),
    ),
    Use(
        "kombu.transport.redis.Transport.Channel",
        "the transport",
        "have kombu make the project's channels",
        lambda on: type(on.channel) is kombu_redis.Transport.Channel,
    ),
    Use(
        "kombu.transport.redis.Channel._size(queue)",
        "JobQueue.depth",
        "count the messages of a queue over all its priorities",
        lambda on: on.channel._size("no-queue") == 0,
    ),
    Use(
        "kombu.Producer.batch()",
        "JobQueue.publish",
        "publish many messages with one round trip",
        lambda _: takes(Producer.batch, "self"),
    ),
    # The sender of events: none is lost, and a thread publishes them.
    Use(
        "celery.app.events.Events.dispatcher_cls, Celery(events=…)",
        "Events, celery_app",
        "have Celery make the project's EventDispatcher, named by a string",
        lambda _: (
            symbol_by_name(Events.dispatcher_cls) is EventDispatcher
            and has(Celery.__init__, "events")
            and mentions(
                Events.Dispatcher.func if hasattr(Events.Dispatcher, "func") else Events.Dispatcher.fget,
                "self.dispatcher_cls",
            )
        ),
    ),
    Use(
        "celery.events.dispatcher.EventDispatcher(buffer_group, buffer_limit, on_send_buffered)",
        DISPATCHER,
        "let events of tasks gather and hear of each; the worker has to ask for it with `buffer_group`",
        lambda on: (
            has(EventDispatcher.__init__, "buffer_group", "buffer_limit", "on_send_buffered")
            and on.dispatcher.buffer_group == {"task"}
            and mentions(EventDispatcher.send, "elif self.on_send_buffered: self.on_send_buffered()")
        ),
    ),
    Use(
        "celery.events.dispatcher.EventDispatcher._group_buffer, ._outbound_buffer, .mutex",
        DISPATCHER,
        "take out what it publishes, so that what another thread adds meanwhile stays",
        lambda on: (
            on.dispatcher._group_buffer == {}
            and not on.dispatcher._outbound_buffer
            and not on.dispatcher.mutex.locked()
        ),
    ),
    Use(
        "celery.events.dispatcher.EventDispatcher._publish(event, producer, routing_key)",
        DISPATCHER,
        "publish one event, or a list of them, under the mutex; what fails has to be put into `_outbound_buffer`",
        lambda _: (
            takes(EventDispatcher._publish, "self", "event", "producer", "routing_key")
            and mentions(EventDispatcher._publish, "self._outbound_buffer.append((event, routing_key, exc))")
        ),
    ),
    Use(
        "celery.events.dispatcher.EventDispatcher.flush(errors, groups), .close(), .producer",
        DISPATCHER,
        "replace how events are published, and end its thread",
        lambda on: (
            takes(EventDispatcher.flush, "self", "errors", "groups")
            and takes(EventDispatcher.close, "self")
            and on.dispatcher.producer is None
        ),
    ),
    Use(
        "kombu.transport.redis.Channel(connection)",
        CHANNEL,
        "remember which levels of priority a worker came down to; `priority_steps` has to be set by then",
        lambda on: (
            mentions(kombu_redis.Channel.__init__, "super().__init__(*args, **kwargs)")
            and list(on.channel.priority_steps) == sorted(on.channel.priority_steps)
        ),
    ),
    Use(
        "kombu transport option queue_order_strategy=round_robin",
        "celery_app",
        "let the kinds of jobs of one priority take turns",
        lambda on: type(on.channel._queue_cycle).__name__ == "round_robin_cycle",
    ),
    # Remote control: revoke cancels jobs, and what would break a worker is off.
    Use(
        "celery.worker.control.Panel.data: name → handler(state, **arguments), control_command(name, args, variadic)",
        "remote_control.install",
        "replace commands in this process, aliases included",
        lambda _: (
            has(control.control_command, "kwargs")
            and mentions(control.Panel._register, "cls.data[control_name] = fun")
            and mentions(pidbox.Pidbox.__init__, "handlers=control.Panel.data")
            and {"revoke", "terminate", "shutdown"} <= control.Panel.data.keys()
        ),
    ),
    Use(
        "celery.Celery.Worker, Celery.Beat",
        "workers.app (the application of `celery -A workers.app`)",
        "say how workers are started where somebody starts Celery's",
        lambda _: (
            mentions(inspect.unwrap(start_worker.callback), "worker = app.Worker(")
            and mentions(inspect.unwrap(start_beat.callback), "app.Beat")
        ),
    ),
    # Tasks: the consumer only receives, and the runner does the jobs.
    Use(
        "celery.Task.Strategy, Task.start_strategy(app, consumer)",
        JOB_MESSAGE,
        "decide what becomes of a message, in place of Celery's pool and tracer",
        lambda _: (
            takes(Task.start_strategy, "self", "app", "consumer")
            and mentions(Task.start_strategy, "instantiate(self.Strategy, self, app, consumer,")
        ),
    ),
    Use(
        "celery.worker.consumer.Consumer.create_task_handler: strategy(message, payload, ack, reject, callbacks)",
        JOB_MESSAGE,
        "be given each message, in the loop that receives them",
        lambda _: mentions(
            Consumer.create_task_handler,
            "strategy(message, payload, ack_log_error_promise, reject_log_error_promise, callbacks,)",
        ),
    ),
    Use(
        "kombu.message.Message.ack_log_error(logger, errors), .reject_log_error(logger, errors)",
        JOB_MESSAGE,
        "acknowledge a message and refuse one, through the promises that the strategy is given",
        lambda _: (
            takes(Message.ack_log_error, "self", "logger", "errors")
            and takes(Message.reject_log_error, "self", "logger", "errors")
        ),
    ),
    Use(
        "celery.worker.state.task_reserved, .task_accepted, .task_ready(request, successful)",
        JOB_MESSAGE,
        "count in the worker's figures and prefetch; a JobMessage stands for Celery's Request there and has its `id`",
        lambda _: (
            takes(state.task_reserved, "request")
            and takes(state.task_accepted, "request")
            and takes(state.task_ready, "request", "successful")
        ),
    ),
    Use(
        "celery.worker.control.active: request.info(safe=…)",
        JOB_MESSAGE,
        "show what runs on Flower's page of a worker",
        lambda _: mentions(
            control.active, "request.info(safe=safe) for request in state.tset(worker_state.active_requests)"
        ),
    ),
    Use(
        "celery.worker.consumer.Consumer.event_dispatcher, .hostname, .connection_errors",
        JOB_MESSAGE,
        "tell watchers what becomes of a job",
        lambda _: (
            mentions(Consumer.__init__, "self.hostname =")
            and mentions(Consumer.__init__, "self.connection_errors =")
            and mentions(consumer_events.Events.start, "c.event_dispatcher = c.app.events.Dispatcher(")
        ),
    ),
    Use(
        "celery.worker.consumer.events.Events.start: Dispatcher(…, buffer_group=…), .extend_buffer(other)",
        DISPATCHER,
        "gather events of tasks in the worker, and take over what its predecessor could not publish",
        lambda _: (
            mentions(consumer_events.Events.start, "buffer_group=['task'] if c.hub else None")
            and mentions(consumer_events.Events.start, "dis.extend_buffer(prev) dis.flush()")
        ),
    ),
    # Start and end of a worker.
    Use(
        "celery.worker.state.should_stop",
        "the worker's start-up (_stop_consuming)",
        "end with an exit status from any thread when the engine is broken",
        lambda _: state.should_stop is None and mentions(state.maybe_shutdown, "raise WorkerShutdown(should_stop)"),
    ),
    Use(
        "celery.Celery.steps, celery.bootsteps.StartStopStep.requires: celery.worker.components:Pool",
        "the worker's start-up (_last_jobs)",
        "let jobs end after the last message was received and while events can still be sent",
        lambda _: (
            isinstance(Celery(set_as_current=False).steps["worker"], set)
            and "celery.worker.components:Pool" in WorkController.Blueprint.default_steps
            and takes(bootsteps.StartStopStep.stop, "self", "parent")
        ),
    ),
    Use(
        "celery.worker.WorkController.exitcode",
        "the worker's and the housekeeper's start-up",
        "know the exit status",
        lambda _: WorkController.exitcode is None,
    ),
    Use(
        "celery.beat.Service(app, max_interval, scheduler_cls), celery.beat.Scheduler",
        "the housekeeper's start-up (_beat)",
        "run beat in a thread, with its schedule in memory",
        lambda _: (
            has(beat.Service.__init__, "app", "max_interval", "scheduler_cls") and inspect.isclass(beat.Scheduler)
        ),
    ),
    # What Flower missed.
    Use(
        "celery.events.state.State.tasks.data (kombu.utils.functional.LRUCache)",
        "MissedEvents",
        "look at what Flower knows without making it count as used",
        lambda _: isinstance(State().tasks, LRUCache) and isinstance(State().tasks.data, dict),
    ),
    Use(
        "celery.events.state.State.event(event), celery.events.state.Task.event(type_, timestamp, fields=…)",
        "MissedEvents",
        "tell Flower out of PostgreSQL what it did not hear",
        lambda _: (
            takes(State.event, "self", "event")
            and takes(TaskState.event, "self", "type_", "timestamp")
            and has(TaskState.event, "fields")
        ),
    ),
]


@pytest.fixture
def subjects(redis_url: str) -> Iterator[Subjects]:
    app = Celery(broker=redis_url, set_as_current=False)
    with app.connection_for_read() as connection, Connection(redis_url) as plain:
        dispatcher = app.events.Dispatcher(connection, enabled=False, buffer_group={"task"})
        yield Subjects(plain.default_channel, dispatcher)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_kombu_and_celery_are_what_we_rely_on(subjects: Subjects, use: Use) -> None:
    try:
        holds, found = use.holds(subjects), ""
    except (AttributeError, KeyError, TypeError, OSError) as error:
        holds, found = False, f" ({type(error).__name__}: {error})"
    if not holds:
        pytest.fail(
            f"celery {celery.__version__} with kombu {kombu.__version__} changed {use.name}{found}. It is used by "
            f"{use.where}, to {use.why}. See docs/celery.md, and adapt the code before allowing these versions.",
            pytrace=False,
        )
