// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

/// @title Federated learning run
/// @notice One contract is one run: who takes part, the hash of every model file that was ever published, and
/// what the learners say of them.
/// The files themselves are in IPFS. A hash is the SHA-256 digest inside the file's CIDv0: the CID is the
/// base58 text of the bytes 0x12 0x20 followed by the hash.
/// Round `r` starts from global weights `r`. In a synchronous run it closes when the last learner has published,
/// or after a timeout; from then on its local weights are fixed, and the header can publish global weights `r + 1`.
/// More than half of the learners can withdraw global weights, and replace the header.
/// @dev The four functions setLocalWeight, getLocalWeight, setGlobalWeight and getGlobalWeight are those of
/// Hwang & Kim, "Federated Learning Based on Ethereum Network" (JIIBC 24(2), 2024), Table 1.
contract FederatedLearning {
    /// @notice The settings of a plan that the contract enforces.
    /// @param learners Learners that can be registered; without all of them no round closes before its timeout.
    /// @param minLearners Local weights that a round needs to close at its timeout.
    /// @param roundTimeout Seconds of block time after which anyone can close a round; 0 means never.
    /// @param asynchronous Whether global weights can be published at any time, so that rounds never close.
    /// @param threshold Members of a closed round that must publish what removes masks before its result can be
    /// published; 0 in a run without masks.
    struct Terms {
        uint16 learners;
        uint16 minLearners;
        uint64 roundTimeout;
        bool asynchronous;
        uint16 threshold;
    }

    /// @dev One storage slot, so that a learner's call costs the same in every round. Global weights are numbered
    /// by the order of their publication, from 1 and withdrawn ones too: their serial.
    struct Learner {
        address account;
        uint24 published; // serial of the global weights that were current at its last publication
        uint24 attested; // serial of the newest global weights that it attested
        uint24 rejected; // serial of the newest global weights that it rejected
        uint8 publications; // in the round of `published`, since it published in another
    }

    /// @dev One storage slot.
    struct Round {
        uint24 serial;
        uint16 published; // learners
        uint16 members; // learners that were registered when the round closed
        uint16 rejections;
        uint40 openedAt;
        uint40 closedAt; // 0 while the round is open
        uint16 openings; // members that published what removes masks
    }

    /// @dev One storage slot.
    struct State {
        address header;
        uint32 ballot;
        uint16 votes;
        uint24 serials; // global weights that were ever published
        uint24 rounds; // global weights that are not withdrawn
    }

    /// @notice Publications that a learner may make in one round.
    uint256 public constant MAX_PUBLICATIONS = 8;

    /// @notice Learners that a run may have.
    uint256 public constant MAX_LEARNERS = 1000;

    /// @notice The account that deployed the contract: the first header.
    address public immutable deployer;

    /// @notice Hash of the plan file, which holds all settings of the run.
    bytes32 public immutable plan;

    /// @notice The node that an account was registered for; 0 for an account that is no learner's.
    mapping(address account => uint256 nodeId) public nodeIdOf;

    uint16 private immutable _expected;
    uint16 private immutable _minimum;
    uint64 private immutable _timeout;
    bool private immutable _asynchronous;
    uint16 private immutable _threshold;

    State private _state;
    uint256 private _candidate = 1; // the deployer; k + 1 is the k-th registered learner. From 0 a change costs more.
    uint256[] private _nodeIds;
    mapping(uint256 nodeId => Learner learner) private _learners;
    mapping(uint256 nodeId => uint256 ballot) private _votedBefore; // the first ballot in which it has not voted
    mapping(uint256 round => Round record) private _rounds;
    mapping(uint256 round => bytes32 hash) private _globalWeights;
    mapping(uint256 serial => mapping(uint256 nodeId => bytes32 hash)) private _localWeights;
    mapping(uint256 serial => mapping(uint256 nodeId => bytes32 hash)) private _openings;
    mapping(uint256 serial => mapping(uint256 nodeId => bytes32 key)) private _keys; // for the round after this serial
    uint256 private _announced; // learners with a key for round 0

    /// @notice The header registered an account for a node.
    /// @param nodeId The node, 1 to the plan's learners.
    /// @param account The account that may publish that node's local weights.
    event LearnerRegistered(uint256 indexed nodeId, address indexed account);

    /// @notice A learner published local weights.
    /// @param round The round whose global weights were current.
    /// @param nodeId The learner's node.
    /// @param hash The hash of the file with the local weights.
    event LocalWeightSet(uint256 indexed round, uint256 indexed nodeId, bytes32 hash);

    /// @notice The header published global weights.
    /// @param round The round that starts from these weights.
    /// @param hash The hash of the file with the global weights.
    event GlobalWeightSet(uint256 indexed round, bytes32 hash);

    /// @notice A round closed: its local weights are fixed.
    /// @param round The round.
    /// @param published Learners that published in it.
    /// @param members Learners that were registered.
    event RoundClosed(uint256 indexed round, uint256 indexed published, uint256 indexed members);

    /// @notice A learner attested global weights, and with them all earlier ones but those that it rejected. Weights are
    /// finalized when more than half of the learners attested them; the log says who.
    /// @param round The round that starts from these weights.
    /// @param nodeId The learner's node.
    /// @param hash The hash of the file with the global weights.
    event GlobalWeightAttested(uint256 indexed round, uint256 indexed nodeId, bytes32 hash);

    /// @notice A learner rejected global weights.
    /// @param round The round that starts from these weights.
    /// @param nodeId The learner's node.
    /// @param hash The hash of the file with the global weights.
    /// @param code What is wrong: the name of a field or of a check, in ASCII.
    /// @param evidence Hash of the file that should have been published, or that the header lied about; 0 if none.
    event GlobalWeightRejected(
        uint256 indexed round,
        uint256 indexed nodeId,
        bytes32 hash,
        bytes32 code,
        bytes32 evidence
    );

    /// @notice More than half of the learners rejected global weights: they and all later ones are withdrawn.
    /// @param round The round that had started from these weights.
    /// @param hash The hash of the file with the global weights.
    event GlobalWeightWithdrawn(uint256 indexed round, bytes32 hash);

    /// @notice A learner voted for the next header.
    /// @param ballot The number of the ballot.
    /// @param nodeId The learner's node.
    event HeaderVoted(uint256 indexed ballot, uint256 indexed nodeId);

    /// @notice Another account became the header.
    /// @param header The new header.
    /// @param nodeId The node of that account; 0 for the deployer.
    event HeaderChanged(address indexed header, uint256 indexed nodeId);

    /// @notice A learner announced the public key of its masks in the next round.
    /// @param round The next round.
    /// @param nodeId The learner's node.
    /// @param key The X25519 public key.
    event KeyAnnounced(uint256 indexed round, uint256 indexed nodeId, bytes32 key);

    /// @notice A member of a closed round published what removes masks.
    /// @param round The round.
    /// @param nodeId The learner's node.
    /// @param hash The hash of the file with its shares.
    event MasksOpened(uint256 indexed round, uint256 indexed nodeId, bytes32 hash);

    /// @notice Only the header may do this.
    /// @param caller The account that tried.
    error NotHeader(address caller);

    /// @notice Only the account registered for this node may do this.
    /// @param nodeId The node that the caller spoke for; 0 if the caller is no learner.
    /// @param caller The account that tried.
    error NotLearner(uint256 nodeId, address caller);

    /// @notice The plan has no learner of this nodeId.
    /// @param nodeId The node that was to be registered.
    /// @param learners The plan's learners: nodeIds are 1 to this.
    error InvalidNodeId(uint256 nodeId, uint256 learners);

    /// @notice The zero address stands for "no account", and the deployer is no learner.
    /// @param account The account that was refused.
    error InvalidAccount(address account);

    /// @notice The node or the account is registered already.
    /// @param nodeId The node that was to be registered.
    /// @param account The account that was to be registered.
    error AlreadyRegistered(uint256 nodeId, address account);

    /// @notice There should be one account for each node.
    /// @param nodeIds Nodes that were to be registered.
    /// @param accounts Accounts that were to be registered.
    error UnequalLists(uint256 nodeIds, uint256 accounts);

    /// @notice A hash of 32 zero bytes stands for "none" and can't be published.
    error EmptyHash();

    /// @notice The settings contradict each other. There must be at least one learner, at most MAX_LEARNERS, and
    /// 1 <= minLearners <= learners; the threshold is at most minLearners, and 0 in an asynchronous run.
    error InvalidTerms();

    /// @notice No global weights are published yet, so there is nothing to train from.
    error NotStarted();

    /// @notice The round is closed: its local weights are fixed.
    /// @param round The round.
    error RoundIsClosed(uint256 round);

    /// @notice The round is open: there can be no global weights before it closes.
    /// @param round The round.
    /// @param published Learners that have published.
    /// @param needed Learners that must publish to close it; before its timeout, all.
    error RoundIsOpen(uint256 round, uint256 published, uint256 needed);

    /// @notice The caller means another round than the current one.
    /// @param current The current round.
    error WrongRound(uint256 current);

    /// @notice The round did not start from the global weights that the caller means.
    /// @param hash The hash of the weights that it started from; 0 if it has not started.
    error OtherWeights(bytes32 hash);

    /// @notice The learner has published as often as it may in one round.
    /// @param nodeId The learner's node.
    error TooManyPublications(uint256 nodeId);

    /// @notice The learner has attested or rejected these global weights or newer ones.
    /// @param nodeId The learner's node.
    error AlreadyJudged(uint256 nodeId);

    /// @notice Too few members of the round have published what removes masks, so nobody can read its sum.
    /// @param round The round.
    /// @param openings Members that have.
    /// @param needed Members that must.
    error MasksAreClosed(uint256 round, uint256 openings, uint256 needed);

    /// @notice Not all learners have announced the key of their masks in round 0.
    /// @param announced Learners that have.
    /// @param needed Learners that must.
    error KeysAreMissing(uint256 announced, uint256 needed);

    /// @notice The learner is no member of the closed round: it published nothing in it.
    /// @param nodeId The learner's node.
    error NotMember(uint256 nodeId);

    /// @notice The learner has opened this round: it can do so once, so that no two sets of members are opened.
    /// @param nodeId The learner's node.
    error AlreadyOpened(uint256 nodeId);

    /// @notice The learner has announced a key for this round.
    /// @param nodeId The learner's node.
    error AlreadyAnnounced(uint256 nodeId);

    /// @notice The run is without masks.
    error NoMasks();

    /// @notice The caller means another ballot than the current one.
    /// @param current The number of the current ballot.
    error WrongBallot(uint256 current);

    /// @notice The learner has voted in this ballot.
    /// @param nodeId The learner's node.
    error AlreadyVoted(uint256 nodeId);

    modifier onlyHeader() {
        if (msg.sender != _state.header) revert NotHeader(msg.sender);
        _;
    }

    /// @notice Starts a run; the deployer is its first header.
    /// @param planHash Hash of the plan file.
    /// @param terms The plan's settings that the contract enforces.
    constructor(bytes32 planHash, Terms memory terms) {
        if (planHash == 0) revert EmptyHash();
        if (terms.minLearners == 0 || terms.minLearners > terms.learners || terms.learners > MAX_LEARNERS) {
            revert InvalidTerms();
        }
        if (terms.threshold > terms.minLearners || (terms.threshold != 0 && terms.asynchronous)) revert InvalidTerms();
        deployer = msg.sender;
        _state.header = msg.sender;
        plan = planHash;
        _expected = terms.learners;
        _minimum = terms.minLearners;
        _timeout = terms.roundTimeout;
        _asynchronous = terms.asynchronous;
        _threshold = terms.threshold;
    }

    /// @notice Registers one account for one node, for good. Header only; possible at any time, so a learner can come
    /// later. Whoever is registered counts in every majority, so there are no more than the plan's learners.
    /// @param nodeId The node, 1 to the plan's learners.
    /// @param account The account that may publish that node's local weights.
    function registerLearner(uint256 nodeId, address account) external onlyHeader {
        _register(nodeId, account);
    }

    /// @notice Registers accounts for nodes as registerLearner does, in this order: all of them or, if one is refused,
    /// none. Header only.
    /// @param nodeIds The nodes, each 1 to the plan's learners.
    /// @param accounts The account of each node.
    function registerLearners(uint256[] calldata nodeIds, address[] calldata accounts) external onlyHeader {
        if (nodeIds.length != accounts.length) revert UnequalLists(nodeIds.length, accounts.length);
        for (uint256 i = 0; i < nodeIds.length; ++i) _register(nodeIds[i], accounts[i]);
    }

    /// @notice Publishes a learner's local weights in the current round, and attests the round's global weights.
    /// Only that learner's account. Another call in the same round replaces the first.
    /// @param nodeId The learner's node.
    /// @param hash Hash of the file with the local weights.
    function setLocalWeight(uint256 nodeId, bytes32 hash) external {
        uint256 current = _current(nodeId, hash);
        _publish(nodeId, hash, current);
        _attest(nodeId, current);
    }

    /// @notice Publishes a learner's local weights if they are still of use. Only that learner's account.
    /// @param nodeId The learner's node.
    /// @param hash Hash of the file with the local weights.
    /// @param round_ The round whose global weights they were trained from; in a synchronous run the current one.
    /// @param parent Hash of those global weights.
    /// @param attests Whether the learner has verified them, and attests them.
    function setLocalWeight(uint256 nodeId, bytes32 hash, uint256 round_, bytes32 parent, bool attests) external {
        uint256 current = _current(nodeId, hash);
        if (!_asynchronous && round_ != current) revert WrongRound(current);
        _check(round_, parent);
        _publish(nodeId, hash, current);
        if (attests) _attest(nodeId, round_);
    }

    /// @notice Publishes global weights. The first call starts round 0; each later one starts the next round, and in
    /// a synchronous run only when the current one is closed. Header only.
    /// @param hash Hash of the file with the global weights.
    function setGlobalWeight(bytes32 hash) external onlyHeader {
        if (hash == 0) revert EmptyHash();
        State memory state = _state;
        uint256 next = state.rounds;
        if (next != 0 && !_asynchronous) {
            Round storage current = _rounds[next - 1];
            if (current.closedAt == 0) revert RoundIsOpen(next - 1, current.published, _expected);
        }
        _checkMasks(next);
        ++state.serials;
        ++state.rounds;
        if (state.votes != 0) {
            // The header has acted, so the votes against it are void.
            state.votes = 0;
            ++state.ballot;
        }
        _state = state;
        _globalWeights[next] = hash;
        _rounds[next] = Round(state.serials, 0, 0, 0, uint40(block.timestamp), 0, 0);
        emit GlobalWeightSet(next, hash);
    }

    /// @notice Closes the current round after its timeout, if enough learners have published. Anyone may ask.
    function closeRound() external {
        uint256 rounds = _state.rounds;
        if (rounds == 0) revert NotStarted();
        uint256 current = rounds - 1;
        Round storage record = _rounds[current];
        if (record.closedAt != 0) revert RoundIsClosed(current);
        if (_asynchronous || _timeout == 0 || block.timestamp < record.openedAt + _timeout) {
            revert RoundIsOpen(current, record.published, _expected);
        }
        if (record.published < _minimum) revert RoundIsOpen(current, record.published, _minimum);
        _close(current, record);
    }

    /// @notice Attests global weights, and with them all earlier ones but those that the learner rejected, without
    /// publishing local weights: the last ones of a run. Learners only.
    /// @param round_ The round that starts from these weights.
    /// @param hash Hash of the file with the global weights.
    function attestGlobalWeight(uint256 round_, bytes32 hash) external {
        uint256 nodeId = _caller();
        _check(round_, hash);
        uint24 serial = _rounds[round_].serial;
        Learner storage learner = _learners[nodeId];
        if (learner.attested >= serial || learner.rejected == serial) revert AlreadyJudged(nodeId);
        _attest(nodeId, round_);
    }

    /// @notice Rejects global weights. Learners only. If more than half of the learners do, these weights and all
    /// later ones are withdrawn, and the next candidate becomes the header.
    /// @param round_ The round that starts from these weights.
    /// @param hash Hash of the file with the global weights.
    /// @param code What is wrong: the name of a field or of a check, in ASCII.
    /// @param evidence Hash of the file that should have been published, or that the header lied about; 0 if none.
    function rejectGlobalWeight(uint256 round_, bytes32 hash, bytes32 code, bytes32 evidence) external {
        uint256 nodeId = _caller();
        _check(round_, hash);
        Round storage record = _rounds[round_];
        uint24 serial = record.serial;
        Learner storage learner = _learners[nodeId];
        if (learner.attested >= serial || learner.rejected >= serial) revert AlreadyJudged(nodeId);
        learner.rejected = serial;
        emit GlobalWeightRejected(round_, nodeId, hash, code, evidence);
        uint16 rejections = record.rejections + 1;
        record.rejections = rejections;
        if (2 * uint256(rejections) > _nodeIds.length) {
            State memory state = _state;
            state.rounds = uint24(round_);
            emit GlobalWeightWithdrawn(round_, hash);
            _succeed(state);
        }
    }

    /// @notice Votes to replace a header that does nothing. Learners only, and in a synchronous run only while the
    /// current round is closed. If more than half of the learners do, the next candidate becomes the header: the
    /// learners in the order of their registration, and after the last of them the deployer again.
    /// @param ballot The number of the ballot.
    function voteHeader(uint256 ballot) external {
        uint256 nodeId = _caller();
        State memory state = _state;
        if (ballot != state.ballot) revert WrongBallot(state.ballot);
        if (_votedBefore[nodeId] > ballot) revert AlreadyVoted(nodeId);
        if (state.rounds != 0 && !_asynchronous) {
            Round storage record = _rounds[state.rounds - 1];
            if (record.closedAt == 0) revert RoundIsOpen(state.rounds - 1, record.published, _expected);
        }
        _votedBefore[nodeId] = ballot + 1;
        emit HeaderVoted(ballot, nodeId);
        ++state.votes;
        if (2 * uint256(state.votes) > _nodeIds.length) _succeed(state);
        else _state = state;
    }

    /// @notice Announces the public key of a learner's masks in the next round, once. Learners only: before the first
    /// global weights, and later while the current round is open, for a learner that returns. Members of a round
    /// announce their next key in the file of their local weights.
    /// @param round_ The next round.
    /// @param key The X25519 public key.
    function announceKey(uint256 round_, bytes32 key) external {
        if (_threshold == 0) revert NoMasks();
        uint256 nodeId = _caller();
        if (key == 0) revert EmptyHash();
        uint256 rounds = _state.rounds;
        if (round_ != rounds) revert WrongRound(rounds);
        uint256 serial = 0;
        if (rounds != 0) {
            if (_rounds[rounds - 1].closedAt != 0) revert RoundIsClosed(rounds - 1);
            serial = _rounds[rounds - 1].serial;
        }
        if (_keys[serial][nodeId] != 0) revert AlreadyAnnounced(nodeId);
        _keys[serial][nodeId] = key;
        if (serial == 0) ++_announced;
        emit KeyAnnounced(round_, nodeId, key);
    }

    /// @notice Publishes what removes masks from the sum of a closed round, once. Members of the current round only.
    /// @param round_ The round.
    /// @param hash Hash of the file with the learner's shares.
    function openMasks(uint256 round_, bytes32 hash) external {
        if (_threshold == 0) revert NoMasks();
        uint256 nodeId = _caller();
        if (hash == 0) revert EmptyHash();
        uint256 rounds = _state.rounds;
        if (rounds == 0) revert NotStarted();
        if (round_ != rounds - 1) revert WrongRound(rounds - 1);
        Round storage record = _rounds[round_];
        if (record.closedAt == 0) revert RoundIsOpen(round_, record.published, _expected);
        uint256 serial = record.serial;
        if (_localWeights[serial][nodeId] == 0) revert NotMember(nodeId);
        if (_openings[serial][nodeId] != 0) revert AlreadyOpened(nodeId);
        _openings[serial][nodeId] = hash;
        ++record.openings;
        emit MasksOpened(round_, nodeId, hash);
    }

    /// @notice The latest local weights of a node, of whichever round; 0 if it has published none.
    /// @param nodeId The learner's node.
    /// @return hash Hash of the file with the local weights.
    function getLocalWeight(uint256 nodeId) external view returns (bytes32 hash) {
        return _localWeights[_learners[nodeId].published][nodeId];
    }

    /// @notice The latest global weights; 0 before the first.
    /// @return hash Hash of the file with the global weights.
    function getGlobalWeight() external view returns (bytes32 hash) {
        uint256 rounds = _state.rounds;
        return rounds == 0 ? bytes32(0) : _globalWeights[rounds - 1];
    }

    /// @notice The round that is going on, which is the number of its global weights; 0 also before the first.
    /// @return current Number of the current round.
    function round() external view returns (uint256 current) {
        uint256 rounds = _state.rounds;
        return rounds == 0 ? 0 : rounds - 1;
    }

    /// @notice The local weights that a node published in a round (its last ones there); 0 if none.
    /// @param round_ The round.
    /// @param nodeId The learner's node.
    /// @return hash Hash of the file with the local weights.
    function localWeightAt(uint256 round_, uint256 nodeId) external view returns (bytes32 hash) {
        return round_ < _state.rounds ? _localWeights[_rounds[round_].serial][nodeId] : bytes32(0);
    }

    /// @notice The global weights that a round started from; 0 if it has not started, or if they were withdrawn.
    /// @param round_ The round.
    /// @return hash Hash of the file with the global weights.
    function globalWeightAt(uint256 round_) external view returns (bytes32 hash) {
        return round_ < _state.rounds ? _globalWeights[round_] : bytes32(0);
    }

    /// @notice The key that a learner announced for a round on its own; 0 if none.
    /// @param round_ The round.
    /// @param nodeId The learner's node.
    /// @return key The X25519 public key.
    function keyAt(uint256 round_, uint256 nodeId) external view returns (bytes32 key) {
        if (round_ > _state.rounds) return 0;
        return _keys[round_ == 0 ? 0 : _rounds[round_ - 1].serial][nodeId];
    }

    /// @notice What a member of a round published to remove masks; 0 if nothing.
    /// @param round_ The round.
    /// @param nodeId The learner's node.
    /// @return hash Hash of the file with its shares.
    function openingAt(uint256 round_, uint256 nodeId) external view returns (bytes32 hash) {
        return round_ < _state.rounds ? _openings[_rounds[round_].serial][nodeId] : bytes32(0);
    }

    /// @notice The account registered for a node; 0 if none.
    /// @param nodeId The learner's node.
    /// @return account The account that may publish that node's local weights.
    function accountOf(uint256 nodeId) external view returns (address account) {
        return _learners[nodeId].account;
    }

    /// @notice All registered nodes, in the order of their registration.
    /// @return nodeIds The nodes.
    function learners() external view returns (uint256[] memory nodeIds) {
        return _nodeIds;
    }

    /// @notice The account that may publish global weights and register learners.
    /// @return account The header's account.
    function header() external view returns (address account) {
        return _state.header;
    }

    /// @notice The settings of the plan that the contract enforces.
    /// @return expected Learners that can be registered; without all of them no round closes before its timeout.
    /// @return minimum Local weights that a round needs to close at its timeout.
    /// @return timeout Seconds of block time after which anyone can close a round; 0 means never.
    /// @return asynchronous Whether global weights can be published at any time, so that rounds never close.
    /// @return threshold Members of a closed round that must publish what removes masks; 0 in a run without masks.
    function getTerms()
        external
        view
        returns (uint256 expected, uint256 minimum, uint256 timeout, bool asynchronous, uint256 threshold)
    {
        return (_expected, _minimum, _timeout, _asynchronous, _threshold);
    }

    /// @notice The state of a round.
    /// @param round_ The round.
    /// @return published Learners that have published in it.
    /// @return members Learners that were registered when it closed; 0 while it is open.
    /// @return rejections Learners that rejected the global weights that it started from.
    /// @return openedAt When it started, in seconds since 1970 by the clock of the block's sealer.
    /// @return closedAt When it closed; 0 while it is open.
    function roundAt(
        uint256 round_
    )
        external
        view
        returns (uint256 published, uint256 members, uint256 rejections, uint256 openedAt, uint256 closedAt)
    {
        if (round_ >= _state.rounds) return (0, 0, 0, 0, 0);
        Round memory record = _rounds[round_];
        return (record.published, record.members, record.rejections, record.openedAt, record.closedAt);
    }

    /// @notice The state that a role needs for its next step, in one call.
    /// @return rounds Global weights that are not withdrawn; the current round is one less.
    /// @return hash Hash of the newest of them; 0 before the first.
    /// @return closed Whether the current round is closed.
    /// @return account The header's account.
    /// @return ballot The number of the current ballot.
    function getState()
        external
        view
        returns (uint256 rounds, bytes32 hash, bool closed, address account, uint256 ballot)
    {
        State memory state = _state;
        if (state.rounds == 0) return (0, 0, false, state.header, state.ballot);
        uint256 current = state.rounds - 1;
        return (state.rounds, _globalWeights[current], _rounds[current].closedAt != 0, state.header, state.ballot);
    }

    /// @notice What a learner stated about the current global weights, and whether it voted in the current ballot.
    /// @param nodeId The learner's node.
    /// @return attested Whether it attested the current global weights.
    /// @return rejected Whether it rejected them.
    /// @return voted Whether it voted in the current ballot.
    function verdictOf(uint256 nodeId) external view returns (bool attested, bool rejected, bool voted) {
        State memory state = _state;
        voted = _votedBefore[nodeId] > state.ballot;
        if (state.rounds != 0) {
            Learner memory learner = _learners[nodeId];
            uint24 serial = _rounds[state.rounds - 1].serial;
            rejected = learner.rejected == serial;
            attested = learner.attested >= serial && !rejected;
        }
    }

    function _register(uint256 nodeId, address account) private {
        if (nodeId == 0 || nodeId > _expected) revert InvalidNodeId(nodeId, _expected);
        if (account == address(0) || account == deployer) revert InvalidAccount(account);
        if (_learners[nodeId].account != address(0) || nodeIdOf[account] != 0) {
            revert AlreadyRegistered(nodeId, account);
        }
        _learners[nodeId].account = account;
        nodeIdOf[account] = nodeId;
        _nodeIds.push(nodeId);
        emit LearnerRegistered(nodeId, account);
    }

    function _publish(uint256 nodeId, bytes32 hash, uint256 current) private {
        Round memory record = _rounds[current];
        if (record.closedAt != 0) revert RoundIsClosed(current);
        Learner storage learner = _learners[nodeId];
        if (learner.published == record.serial) {
            if (learner.publications == MAX_PUBLICATIONS) revert TooManyPublications(nodeId);
            ++learner.publications;
        } else {
            learner.published = record.serial;
            learner.publications = 1;
            // It may have published here before: in an asynchronous run, a withdrawal opens an earlier round again.
            if (_localWeights[record.serial][nodeId] == 0) {
                ++record.published;
                _rounds[current] = record;
            }
        }
        _localWeights[record.serial][nodeId] = hash;
        emit LocalWeightSet(current, nodeId, hash);
        if (!_asynchronous && record.published == _expected) _close(current, _rounds[current]);
    }

    function _close(uint256 current, Round storage record) private {
        record.closedAt = uint40(block.timestamp);
        record.members = uint16(_nodeIds.length);
        emit RoundClosed(current, record.published, _nodeIds.length);
    }

    function _attest(uint256 nodeId, uint256 round_) private {
        uint24 serial = _rounds[round_].serial;
        Learner storage learner = _learners[nodeId];
        if (learner.attested >= serial || learner.rejected == serial) return;
        learner.attested = serial;
        emit GlobalWeightAttested(round_, nodeId, _globalWeights[round_]);
    }

    /// @dev Makes the next candidate the header.
    function _succeed(State memory state) private {
        state.votes = 0;
        ++state.ballot;
        uint256 candidate = _candidate > _nodeIds.length ? 1 : _candidate + 1;
        _candidate = candidate;
        uint256 nodeId = candidate == 1 ? 0 : _nodeIds[candidate - 2];
        state.header = nodeId == 0 ? deployer : _learners[nodeId].account;
        _state = state;
        emit HeaderChanged(state.header, nodeId);
    }

    /// @dev The current round, in which the caller may publish this hash for this node.
    function _current(uint256 nodeId, bytes32 hash) private view returns (uint256 current) {
        if (msg.sender != _learners[nodeId].account) revert NotLearner(nodeId, msg.sender);
        if (hash == 0) revert EmptyHash();
        uint256 rounds = _state.rounds;
        if (rounds == 0) revert NotStarted();
        return rounds - 1;
    }

    /// @dev Before masks are removed, there is no result to publish; before all have keys, there is no first round.
    function _checkMasks(uint256 next) private view {
        if (_threshold == 0) return;
        if (next == 0) {
            if (_announced < _expected) revert KeysAreMissing(_announced, _expected);
        } else if (_rounds[next - 1].openings < _threshold) {
            revert MasksAreClosed(next - 1, _rounds[next - 1].openings, _threshold);
        }
    }

    function _check(uint256 round_, bytes32 hash) private view {
        bytes32 started = round_ < _state.rounds ? _globalWeights[round_] : bytes32(0);
        if (hash == 0 || hash != started) revert OtherWeights(started);
    }

    function _caller() private view returns (uint256 nodeId) {
        nodeId = nodeIdOf[msg.sender];
        if (nodeId == 0) revert NotLearner(0, msg.sender);
    }
}
