'use strict';
// Loaded with --require into NNI's node manager, which has no setting for any of this:
//  - its web server, which runs commands without authentication, listens on loopback only;
//  - a tuner that imports slowly on a loaded machine has two minutes to connect, not ten seconds;
//  - the tuner's process is its own child, without a shell between, so that it can ask to die with its parent;
//  - it stops, with all that it started, when the process that started it is gone, however that ended.
const childProcess = require('child_process');
const net = require('net');

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (target, ...rest) {
  const callbacks = rest.filter((argument) => typeof argument === 'function');
  if (typeof target === 'number') {
    return listen.call(this, { port: target, host: '127.0.0.1' }, ...callbacks);
  }
  if (target !== null && typeof target === 'object' && 'port' in target) {
    return listen.call(this, { ...target, host: '127.0.0.1' }, ...callbacks);
  }
  throw new Error('DeepCV: NNI may listen on a loopback port only');
};

const setTimer = global.setTimeout;
global.setTimeout = Object.assign(function (callback, delay, ...rest) {
  const tunerLimit = delay === 10000 && String(callback).includes('Tuner did not connect');
  return setTimer(callback, tunerLimit ? 120000 : delay, ...rest);
}, setTimer);  // util.promisify(setTimeout) reads a property of the function

const spawn = childProcess.spawn;
childProcess.spawn = function (command, ...rest) {
  const tuner = Array.isArray(rest[0]) && rest[0].includes('--exp_params');
  return spawn.call(this, tuner ? `exec ${command}` : command, ...rest);
};

const owner = Number(process.env.DEEPCV_SEARCH_OWNER_PID);
const watch = setInterval(() => {
  if (process.ppid === owner) {
    return;
  }
  clearInterval(watch);
  // This process leads its group, which holds the tuner and the trials: trials close their MLflow run on SIGINT.
  process.kill(-process.pid, 'SIGINT');
  setTimer(() => process.kill(-process.pid, 'SIGKILL'), 9000);
}, 500);
watch.unref();
