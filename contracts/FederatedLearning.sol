// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

/// @title Federated learning run
/// @notice One contract is one run: who takes part, and the hash of every model file that was ever published.
/// The files themselves are in IPFS. A hash is the SHA-256 digest inside the file's CIDv0: the CID is the
/// base58 text of the bytes 0x12 0x20 followed by the hash.
/// Round `r` starts from global weights `r` and ends when the header publishes global weights `r + 1`.
/// @dev The four functions setLocalWeight, getLocalWeight, setGlobalWeight and getGlobalWeight are those of
/// Hwang & Kim, "Federated Learning Based on Ethereum Network" (JIIBC 24(2), 2024), Table 1.
contract FederatedLearning {
    /// @dev One storage slot, so that a learner's call costs the same in every round.
    struct Learner {
        address account;
        uint64 rounds;
    }

    /// @notice The account that deployed the contract: it registers learners and publishes global weights.
    address public immutable header;

    /// @notice Hash of the plan file, which holds all settings of the run.
    bytes32 public immutable plan;

    /// @notice The node that an account was registered for; 0 for an account that is no learner's.
    mapping(address account => uint256 nodeId) public nodeIdOf;

    uint256 private _published;
    uint256[] private _nodeIds;
    mapping(uint256 nodeId => Learner learner) private _learners;
    mapping(uint256 round => bytes32 hash) private _globalWeights;
    mapping(uint256 round => mapping(uint256 nodeId => bytes32 hash)) private _localWeights;

    /// @notice The header registered an account for a node.
    /// @param nodeId The node, 1 or more.
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

    /// @notice Only the header may do this.
    /// @param caller The account that tried.
    error NotHeader(address caller);

    /// @notice Only the account registered for this node may do this.
    /// @param nodeId The node that the caller spoke for.
    /// @param caller The account that tried.
    error NotLearner(uint256 nodeId, address caller);

    /// @notice Node 0 stands for "no node" and can't be registered.
    error InvalidNodeId();

    /// @notice The zero address stands for "no account", and the header is no learner.
    /// @param account The account that was refused.
    error InvalidAccount(address account);

    /// @notice The node or the account is registered already.
    /// @param nodeId The node that was to be registered.
    /// @param account The account that was to be registered.
    error AlreadyRegistered(uint256 nodeId, address account);

    /// @notice A hash of 32 zero bytes stands for "none" and can't be published.
    error EmptyHash();

    /// @notice No global weights are published yet, so there is nothing to train from.
    error NotStarted();

    modifier onlyHeader() {
        if (msg.sender != header) revert NotHeader(msg.sender);
        _;
    }

    /// @notice Starts a run; the deployer is its header.
    /// @param planHash Hash of the plan file.
    constructor(bytes32 planHash) {
        if (planHash == 0) revert EmptyHash();
        header = msg.sender;
        plan = planHash;
    }

    /// @notice Registers one account for one node, for good. Header only; possible at any time.
    /// @param nodeId The node, 1 or more.
    /// @param account The account that may publish that node's local weights.
    function registerLearner(uint256 nodeId, address account) external onlyHeader {
        if (nodeId == 0) revert InvalidNodeId();
        if (account == address(0) || account == header) revert InvalidAccount(account);
        if (_learners[nodeId].account != address(0) || nodeIdOf[account] != 0) {
            revert AlreadyRegistered(nodeId, account);
        }
        _learners[nodeId].account = account;
        nodeIdOf[account] = nodeId;
        _nodeIds.push(nodeId);
        emit LearnerRegistered(nodeId, account);
    }

    /// @notice Publishes a learner's local weights in the current round. Only that learner's account.
    /// A second call in a round replaces what `localWeightAt` answers; both stay in the log of events.
    /// @param nodeId The learner's node.
    /// @param hash Hash of the file with the local weights.
    function setLocalWeight(uint256 nodeId, bytes32 hash) external {
        Learner storage learner = _learners[nodeId];
        if (msg.sender != learner.account) revert NotLearner(nodeId, msg.sender);
        if (hash == 0) revert EmptyHash();
        uint256 published = _published;
        if (published == 0) revert NotStarted();
        uint256 current = published - 1;
        _localWeights[current][nodeId] = hash;
        // Never truncates: 2^64 rounds can't be reached one transaction at a time.
        learner.rounds = uint64(published);
        emit LocalWeightSet(current, nodeId, hash);
    }

    /// @notice Publishes global weights. The first call starts round 0, each later one closes a round. Header only.
    /// @param hash Hash of the file with the global weights.
    function setGlobalWeight(bytes32 hash) external onlyHeader {
        if (hash == 0) revert EmptyHash();
        uint256 next = _published;
        _globalWeights[next] = hash;
        _published = next + 1;
        emit GlobalWeightSet(next, hash);
    }

    /// @notice The latest local weights of a node, of whichever round; 0 if it has published none.
    /// @param nodeId The learner's node.
    /// @return hash Hash of the file with the local weights.
    function getLocalWeight(uint256 nodeId) external view returns (bytes32 hash) {
        uint256 rounds = _learners[nodeId].rounds;
        return rounds == 0 ? bytes32(0) : _localWeights[rounds - 1][nodeId];
    }

    /// @notice The latest global weights; 0 before the first.
    /// @return hash Hash of the file with the global weights.
    function getGlobalWeight() external view returns (bytes32 hash) {
        return _published == 0 ? bytes32(0) : _globalWeights[_published - 1];
    }

    /// @notice The round that is going on, which is the number of its global weights; 0 also before the first.
    /// @return current Number of the current round.
    function round() external view returns (uint256 current) {
        return _published == 0 ? 0 : _published - 1;
    }

    /// @notice The local weights that a node published in a round (its last ones there); 0 if none.
    /// @param round_ The round.
    /// @param nodeId The learner's node.
    /// @return hash Hash of the file with the local weights.
    function localWeightAt(uint256 round_, uint256 nodeId) external view returns (bytes32 hash) {
        return _localWeights[round_][nodeId];
    }

    /// @notice The global weights that a round started from; 0 if it has not started.
    /// @param round_ The round.
    /// @return hash Hash of the file with the global weights.
    function globalWeightAt(uint256 round_) external view returns (bytes32 hash) {
        return _globalWeights[round_];
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
}
