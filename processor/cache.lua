-- One look-up in the answers that replicas share in Redis, or one change, with what goes by age and by use.
-- KEYS[1] who was used when: {key: a number that grows}; [2] who ends when: {key: ms}; [3] the answer asked for
-- ARGV[1] its name in both indexes; [2] the prefix of all answers' keys; [3] "get" or "put"; for a put: [4] the answer,
--         [5] how long it counts, ms; [6] how many there may be
-- All keys have one hash tag, so that a cluster keeps them on one node.

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(name)
  redis.call('ZREM', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end

local function use(name)
  -- A clock that was set back must not make the newest the first to go.
  local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  local at = math.max(time[1] * 1000000 + time[2], last and tonumber(last) + 1 or 0)
  redis.call('ZADD', KEYS[1], string.format('%.0f', at), name)
end

if ARGV[3] == 'get' then
  local answer = redis.call('GET', KEYS[3])
  if answer then
    use(ARGV[1])
  else
    forget(ARGV[1])
  end
  return answer
end

local ttl_ms, most = tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('SET', KEYS[3], ARGV[4], 'PX', ttl_ms)
use(ARGV[1])
redis.call('ZADD', KEYS[2], now_ms + ttl_ms, ARGV[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. now_ms)) do
  forget(name)
end
local too_many = redis.call('ZCARD', KEYS[1]) - most
if too_many > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, too_many - 1)) do
    redis.call('DEL', ARGV[2] .. name)
    forget(name)
  end
end
for i = 1, 2 do
  redis.call('PEXPIRE', KEYS[i], math.max(ttl_ms, redis.call('PTTL', KEYS[i])))
end
return false
